"""How a namespace was set up, which whoever works with it asks first: the number of partitions above all."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from thinkstream_client.errors import ConfigError
from thinkstream_client.settings import RedisSettings

from .call import Call
from .connection import Connection
from .upkeep_calls import Meta, meta_claim, meta_get
from .wire_request import VERSION


def settle(settings: RedisSettings) -> Generator[Call[Any], Any, RedisSettings]:
    """Yields calls, is sent their results, and returns the settings with the namespace's own partitions.

    Sets the namespace up where nobody has. Where somebody has, it is only read: clients need no right to
    write there.

    Raises:
        ConfigError: It speaks another protocol, or has not the partitions that the settings ask for.
    """
    known: Meta | None = yield meta_get(settings.keys)
    meta: Meta = (yield meta_claim(settings.keys)) if known is None else known
    wanted = {"protocol": (meta.protocol, str(VERSION))}
    if settings.num_partitions is not None:
        wanted["partitions"] = (meta.partitions, str(settings.num_partitions))
    for what, (found, expected) in wanted.items():
        if found != expected:
            raise ConfigError(
                f"namespace {settings.namespace} was set up for {what} {found}, this is {expected}"
            )
    try:
        return replace(settings, num_partitions=int(meta.partitions))
    except ValueError:
        raise ConfigError(f"namespace {settings.namespace} has no number of partitions") from None


def settled(connection: Connection, settings: RedisSettings) -> RedisSettings:
    """Runs ``settle``; raises as it does."""
    operation = settle(settings)
    result: Any = None
    while True:
        try:
            call = operation.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        result = connection.run(call)
