"""What redis-py's clients are told, from the URL and from us."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from thinkstream_client.address import Topology
from thinkstream_client.errors import ConfigError
from thinkstream_client.settings import RedisSettings

CONNECT_TIMEOUT_S = 5.0
HEALTH_CHECK_S = 30
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def own_options(settings: RedisSettings, timeout_s: float, retry: Any) -> dict[str, Any]:
    """What we ask of every connection."""
    # A connection whose other end is gone without a word is noticed by its system too, also while it is idle.
    keepalive = {} if settings.address.url.startswith("unix:") else {"socket_keepalive": True}
    return keepalive | {
        "protocol": 2,
        "retry": retry,
        "retry_on_error": [],
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": timeout_s,
        "health_check_interval": HEALTH_CHECK_S,
    }


def options_of_url(settings: RedisSettings) -> dict[str, Any]:
    """What a URL of several hosts says beside the hosts."""
    import redis.connection

    connection: Any = redis.connection
    found: dict[str, Any] = dict(connection.parse_url(settings.address.url))
    for name in ("host", "port", "connection_class"):
        found.pop(name, None)
    if settings.address.topology is Topology.CLUSTER:
        found.pop("db", None)
    if settings.address.url.startswith("rediss:"):
        found["ssl"] = True
    return found


@contextlib.contextmanager
def naming_the_url(settings: RedisSettings) -> Generator[None]:
    """Names the URL whose options redis-py does not take.

    Raises:
        ConfigError: An option is none, or a file that it names is not there.
    """
    try:
        _check_options(settings)
        yield
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(f"Redis URL {settings.masked_url}: {error}") from error


def _check_options(settings: RedisSettings) -> None:
    """Raises what no waiting will change: OSError for a file that is not there, TypeError for no option."""
    import redis.connection

    connection: Any = redis.connection
    found: dict[str, Any] = dict(connection.parse_url(settings.address.url))
    found.pop("max_connections", None)  # the pool's
    found.pop("connection_class", connection.Connection)(**found)  # connects to nothing yet
    for name in _FILES:
        if name in found:
            with open(found[name], "rb"):
                pass
