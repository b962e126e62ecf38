"""Where a Ray cluster is said to be, and whether one may be there. Needs no Ray.

Ray itself looks for minutes for what is not there, in foreign code that no signal ends.
"""

from __future__ import annotations

import os
import re
import socket

from thinkstream_client.errors import ConfigError, ServiceUnavailable

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/@\[\]\s]+):(?P<port>\d{1,5})")
_AUTO = "auto"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2, and so of gRPC, says first: the preface, and settings that change nothing."""
_SETTINGS = 4
"""The kind of frame that a server answers with; it stands in the fourth byte."""


def check_address(address: str) -> None:
    """Returns if this may be the address of a cluster.

    Raises:
        ConfigError: It is of no known form.
    """
    _parse(address)


def check_answers(address: str, *, timeout_s: float = 3.0) -> None:
    """Returns if something there speaks as Ray does; what ``auto`` stands for, Ray alone knows.

    Args:
        address: The address.
        timeout_s: How long it may take to answer.

    Raises:
        ConfigError: The address is of no known form.
        ServiceUnavailable: Nothing answers, or something else.
    """
    place = _parse(address)
    if place is None:
        return
    try:
        with socket.create_connection(place, timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":  # then it answers to those alone that Ray lets in
                return
            connection.settimeout(timeout_s)
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise ServiceUnavailable(f"Ray at {address} does not answer: {error.strerror or error}") from error
    if answer[3:4] != bytes((_SETTINGS,)):
        raise ServiceUnavailable(f"Ray at {address} does not answer: what listens there is no Ray")


def _parse(address: str) -> tuple[str, int] | None:
    if address == _AUTO:
        return None
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        raise ConfigError(f"ray_address: got {address!r}, allowed: HOST:PORT or auto")
    return found["host"].strip("[]"), int(found["port"])
