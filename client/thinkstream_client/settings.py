"""Where Redis is and whose keys are ours in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .address import Address, Topology, parse_address
from .checks import check_integer
from .errors import ConfigError, InvalidRequest, shortened
from .keys import Keys, check_name

CLUSTER_PARTITIONS = 16
"""Partitions of a namespace that is set up in a Cluster without saying how many."""

MAX_PARTITIONS = 1024

_SECRET = re.compile(r"(://[^:/@]*:)[^@]*(@)|([?&](?:\w*_)?password=)[^&]*")
_FORMS = (
    "redis://host:port, rediss://host:port, unix:///path, redis+sentinel://host:port,host:port/service "
    "or redis+cluster://host:port,host:port"
)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """How to reach Redis. The password in the URL never shows in a repr, a log line or an error.

    One server is ``redis://[user:password@]host[:port][/db]`` or ``unix:///path``. Sentinels are
    ``redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]``, where user and password are
    those of the servers, and the Sentinels' own follow as ``?sentinel_username=...&sentinel_password=...``.
    Some nodes of a Cluster are ``redis+cluster://[user:password@]host[:port],host[:port]``.

    With ``rediss`` in the place of ``redis`` each of them speaks TLS. Options behind ``?`` name files:
    ``ssl_ca_certs`` of the authority that signed the servers' certificates (else the system's),
    ``ssl_certfile`` and ``ssl_keyfile`` of a certificate of our own.

    Args:
        url: Where it is.
        namespace: First part of every key.
        num_partitions: Hash tags over which the jobs are spread, for whoever sets the namespace up; it is
            fixed from then on. None is 16 in a Cluster and 1 elsewhere.

    Raises:
        ConfigError: The URL is of no known form.
        InvalidRequest: The namespace is no name.
    """

    url: str = field(repr=False)
    namespace: str = "ts"
    num_partitions: int | None = None
    masked_url: str = field(init=False, default="")
    """The URL as it may be shown."""
    address: Address = field(init=False, repr=False, compare=False)
    """The URL, taken apart."""

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"Redis URL of type {type(self.url).__name__}: expected {_FORMS}")
        object.__setattr__(self, "masked_url", _SECRET.sub(r"\1\3***\2", self.url))
        try:
            address = parse_address(self.url)
            for host in [name for name, _ in address.hosts] or [urlsplit(self.url).hostname or ""]:
                host.encode("idna")  # as who looks for it will: labels of at most 63 letters
            object.__setattr__(self, "address", address)
        except ValueError:
            raise ConfigError(f"Redis URL {shortened(self.masked_url)}: expected {_FORMS}") from None
        check_name("namespace", self.namespace)
        if self.num_partitions is not None:
            try:
                check_integer("num_partitions", self.num_partitions, 1, MAX_PARTITIONS)
            except InvalidRequest as error:
                raise ConfigError(str(error)) from None

    @property
    def keys(self) -> Keys:
        """The names of the keys, as long as nobody has set the namespace up otherwise; see ``namespace``."""
        default = CLUSTER_PARTITIONS if self.address.topology is Topology.CLUSTER else 1
        return Keys(self.namespace, self.num_partitions or default)
