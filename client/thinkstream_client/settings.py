"""Where Redis is and whose keys are ours in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .errors import ConfigError
from .keys import Keys, check_name

_SCHEMES = ("redis", "rediss", "unix")
_SECRET = re.compile(r"(://[^:/@]*:)[^@]*(@)|([?&]password=)[^&]*")


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """How to reach Redis. The password in the URL never shows in a repr, a log line or an error.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://...`` or ``unix:///path``.
        namespace: First part of every key.
        num_partitions: Hash tags over which the jobs are spread; 1 unless Redis is a Cluster.

    Raises:
        ConfigError: The URL is of no known form.
        InvalidRequest: The namespace is no name.
    """

    url: str = field(repr=False)
    namespace: str = "ts"
    num_partitions: int = 1
    masked_url: str = field(init=False, default="")
    """The URL as it may be shown."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "masked_url", _SECRET.sub(r"\1\3***\2", self.url))
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in _SCHEMES and bool(
                parts.path if parts.scheme == "unix" else parts.hostname
            )
            _ = parts.port
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(
                f"Redis URL {self.masked_url}: expected redis://host:port, rediss://host:port or unix:///path"
            )
        check_name("namespace", self.namespace)
        if self.num_partitions < 1:
            raise ConfigError(f"num_partitions: got {self.num_partitions}, expected at least 1")

    @classmethod
    def from_url(cls, url: str, namespace: str = "ts", num_partitions: int = 1) -> RedisSettings:
        """Returns the settings for a URL."""
        return cls(url, namespace, num_partitions)

    @property
    def keys(self) -> Keys:
        """The names of the keys."""
        return Keys(self.namespace, self.num_partitions)
