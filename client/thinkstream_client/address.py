"""What a URL says about where Redis is: one server, the Sentinels that know it, or the nodes of a Cluster.

Knows no connection; ``servers`` makes clients from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

_SCHEMES = ("redis", "rediss", "unix")
_SEVERAL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<how>sentinel|cluster)://"
    r"(?:(?P<who>[^@/?]*)@)?(?P<hosts>[^@/?]+)(?:/(?P<path>[^?]*))?(?:\?(?P<query>.*))?"
)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")
_SENTINEL_OPTION = "sentinel_"


class Topology(StrEnum):
    """How Redis is run."""

    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_PORTS = {Topology.SENTINEL: 26379, Topology.CLUSTER: 6379}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Address:
    """A URL, taken apart.

    Attributes:
        topology: How Redis is run.
        url: The URL of one server, as redis-py reads it: user, password, TLS options; the server itself where
            there is but one.
        hosts: The Sentinels, or some nodes of the Cluster.
        service: What the Sentinels call the primary.
        sentinel_options: How to log in to the Sentinels themselves.
    """

    topology: Topology
    url: str
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: tuple[tuple[str, str], ...] = ()


def parse_address(url: str) -> Address:
    """Takes a URL apart.

    Raises:
        ValueError: It has none of the known forms; the message does not repeat it.
    """
    found = _SEVERAL.fullmatch(url)
    if found is not None:
        return _several(found)
    parts = urlsplit(url)
    _ = parts.port  # raises where it is none
    if parts.scheme not in _SCHEMES or not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise ValueError("no known form")
    return Address(topology=Topology.SERVER, url=url)


def _several(found: re.Match[str]) -> Address:
    topology = Topology(found["how"])
    service, database = "", ""
    path = unquote(found["path"] or "")
    if topology is Topology.SENTINEL:
        service, _, database = path.partition("/")
        if not service:
            raise ValueError("the name of the Sentinels' service is missing")
    elif path not in ("", "0"):
        raise ValueError("a Cluster has database 0 alone")
    if database and not database.isdecimal():
        raise ValueError("the database is no number")
    options = parse_qsl(found["query"] or "", keep_blank_values=True)
    hosts = tuple(_host(text, _PORTS[topology]) for text in found["hosts"].split(","))
    who = "" if found["who"] is None else f"{found['who']}@"
    query = urlencode([pair for pair in options if not pair[0].startswith(_SENTINEL_OPTION)])
    return Address(
        topology=topology,
        url=f"{found['scheme']}://{who}{_netloc(hosts[0])}/{database or 0}{'?' if query else ''}{query}",
        hosts=hosts,
        service=service,
        sentinel_options=tuple(
            (name.removeprefix(_SENTINEL_OPTION), value)
            for name, value in options
            if name.startswith(_SENTINEL_OPTION)
        ),
    )


def _host(text: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("a host is none")
    return found["host"].strip("[]"), int(found["port"] or port)


def _netloc(host: tuple[str, int]) -> str:
    name, port = host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
