"""How operations run on a blocking connection: does what they yield, and sends them the replies."""

from __future__ import annotations

import time
from typing import Any, TypeVar

from .core.effects import Effect, Operation, Pipeline, Read, Sleep, Wait
from .errors import ThinkstreamError
from .protocol.connection import Connection
from .settings import RedisSettings

T = TypeVar("T")


class Runner:
    """Runs operations on a blocking connection.

    Args:
        settings: Where Redis is.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._connection = Connection(settings)
        self._reader = Connection(settings, blocking=True)

    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end and returns what it returns."""
        reply: Any = None
        error: ThinkstreamError | None = None
        while True:
            try:
                effect = operation.send(reply) if error is None else operation.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            reply, error = None, None
            try:
                reply = self._perform(effect)
            except ThinkstreamError as refused:
                error = refused

    def close(self) -> None:
        """Closes the sockets."""
        self._connection.close()
        self._reader.close()

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Sleep(ms):
                time.sleep(ms / 1000)
                return None
            case Read():
                return self._reader.run(effect.call())
            case Wait(call):
                return self._reader.run(call)
            case Pipeline(calls):
                return self._connection.run_many(calls)
            case _:
                return self._connection.run(effect)
