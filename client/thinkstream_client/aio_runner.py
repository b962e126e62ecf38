"""How operations run on an event loop: does what they yield, and sends them the replies."""

from __future__ import annotations

from typing import Any, TypeVar

from .aio_read_pool import ReadPool
from .core.effects import Effect, Operation, Pipeline, Read, Sleep, Wait
from .errors import ThinkstreamError
from .protocol.connection import AsyncConnection
from .settings import RedisSettings

T = TypeVar("T")


class AsyncRunner:
    """Runs operations on an event loop.

    Args:
        settings: Where Redis is.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._connection = AsyncConnection(settings)
        self._reader = AsyncConnection(settings, blocking=True)
        self._reads = ReadPool(self._reader)

    async def run(self, operation: Operation[T]) -> T:
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
                reply = await self._perform(effect)
            except ThinkstreamError as refused:
                error = refused

    async def close(self) -> None:
        """Closes the sockets."""
        await self._reads.close()
        await self._connection.close()
        await self._reader.close()

    async def _perform(self, effect: Effect) -> Any:
        import asyncio

        match effect:
            case Sleep(ms):
                await asyncio.sleep(ms / 1000)
                return None
            case Read():
                return await self._reads.read(effect)
            case Wait(call):
                return await self._reader.run(call)
            case Pipeline(calls):
                return await self._connection.run_many(calls)
            case _:
                return await self._connection.run(effect)
