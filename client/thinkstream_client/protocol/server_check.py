"""Whether a server may hold the queue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from thinkstream_client.errors import ConfigError

from .call import Call

_MIN_REDIS = (7, 0)
_MIN_VALKEY = (7, 2)
_WAITAOF_REDIS = (7, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says about itself.

    Attributes:
        name: ``Redis`` or ``Valkey``.
        version: Its version.
        append_only: Whether it keeps an append-only file.
    """

    name: str
    version: str
    append_only: bool

    @property
    def has_waitaof(self) -> bool:
        """Whether it can tell when a write is on disk."""
        return self.name == "Valkey" or _numbers(self.version) >= _WAITAOF_REDIS


def server_check() -> Call[ServerInfo]:
    """Asks the server whether it may hold the queue.

    The call raises:
        ConfigError: It is too old, or it evicts keys when memory is short.
    """
    return Call(("INFO",), _parse)


def _parse(reply: Any) -> ServerInfo:
    found = dict(re.findall(r"^(\w+):([^\r\n]*)", reply.decode(errors="replace"), re.MULTILINE))
    is_valkey = "valkey_version" in found
    name = "Valkey" if is_valkey else "Redis"
    version = found.get("valkey_version") or found.get("redis_version", "0")
    minimum = _MIN_VALKEY if is_valkey else _MIN_REDIS
    if _numbers(version) < minimum:
        wanted = ".".join(str(part) for part in minimum)
        raise ConfigError(f"{name} {version} is too old: {wanted} or later is needed")
    policy = found.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ConfigError(
            f"{name} evicts keys when memory is short: set maxmemory-policy to noeviction, it is {policy}"
        )
    return ServerInfo(
        name=name,
        version=version,
        append_only=found.get("aof_enabled") == "1",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
