"""The boundary to Redis: runs calls, and translates what goes wrong into our own errors.

Nothing is sent twice here: after a lost reply the caller alone knows whether that is safe. A ``Connection``
may be used by several threads, an ``AsyncConnection`` by several tasks of one loop. ``redis`` and ``asyncio``
are imported at the first connection, for they cost more than the rest of the client.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from . import library
from .call import Call
from .errors import (
    ConfigError,
    QueueFull,
    RecordInvalid,
    ServiceUnavailable,
    ThinkstreamError,
)
from .settings import RedisSettings

if TYPE_CHECKING:
    import redis
    import redis.asyncio

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 5.0
HEALTH_CHECK_S = 30
MEMORY_RETRY_MS = 2000

_NO_FUNCTION = "Function not found"


class Connection:
    """Runs calls on one server.

    Args:
        settings: Where it is.
        blocking: For calls that wait in Redis: a reply may take as long as it likes.
    """

    def __init__(self, settings: RedisSettings, *, blocking: bool = False) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._where = settings.masked_url
        self._client: redis.Redis = _made(redis.Redis, settings, Retry(NoBackoff(), 0), blocking)
        self._is_loaded = False

    def run(self, call: Call[T]) -> T:
        """Sends a call and reads its reply.

        Raises:
            ServiceUnavailable: No reply came; the call may have been carried out or not.
            QueueFull: The server's memory is full.
            ConfigError: The server refuses us, or cannot do what we need.
            ThinkstreamError: The refusals that the call's builder names.
        """
        self._load_if_needed(call)
        try:
            return call.parse(self._send(call))
        except _FunctionMissing:
            self._load()
            return call.parse(self._send(call))

    def run_many(self, calls: Sequence[Call[T]]) -> list[T | ThinkstreamError]:
        """Sends calls in one pipeline, each by itself: a refusal stands in the place of a result.

        Raises:
            ServiceUnavailable: No replies came; each call may have been carried out or not.
        """
        for call in calls:
            self._load_if_needed(call)
        results = [_parsed(call, reply) for call, reply in zip(calls, self._send_many(calls), strict=True)]
        missing = [i for i, result in enumerate(results) if isinstance(result, _FunctionMissing)]
        if missing:
            self._load()
            again = [calls[i] for i in missing]
            for i, reply in zip(missing, self._send_many(again), strict=True):
                results[i] = _parsed(calls[i], reply)
        return results

    def close(self) -> None:
        """Closes the sockets; a later call opens new ones."""
        self._client.close()

    def _load_if_needed(self, call: Call[Any]) -> None:
        if self._is_loaded or call.args[0] != "FCALL":
            return
        current = library.is_current()
        try:
            is_current = current.parse(self._send(current))
        except _FunctionMissing:
            is_current = False
        if not is_current:
            self._load()
        self._is_loaded = True

    def _load(self) -> None:
        self._send(library.load())

    def _send(self, call: Call[Any]) -> Any:
        with _translated(self._where):
            return self._client.execute_command(*call.args)

    def _send_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        if not calls:
            return []
        with _translated(self._where), self._client.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.execute_command(*call.args)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        return [_error_of(reply, self._where) for reply in replies]


class AsyncConnection:
    """Runs calls on one server from an event loop; see ``Connection``."""

    def __init__(self, settings: RedisSettings, *, blocking: bool = False) -> None:
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._where = settings.masked_url
        self._client: redis.asyncio.Redis = _made(
            redis.asyncio.Redis, settings, Retry(NoBackoff(), 0), blocking
        )
        self._is_loaded = False

    async def run(self, call: Call[T]) -> T:
        """Sends a call and reads its reply; raises as ``Connection.run`` does."""
        await self._load_if_needed(call)
        try:
            return call.parse(await self._send(call))
        except _FunctionMissing:
            await self._load()
            return call.parse(await self._send(call))

    async def run_many(self, calls: Sequence[Call[T]]) -> list[T | ThinkstreamError]:
        """Sends calls in one pipeline; returns and raises as ``Connection.run_many`` does."""
        for call in calls:
            await self._load_if_needed(call)
        replies = await self._send_many(calls)
        results = [_parsed(call, reply) for call, reply in zip(calls, replies, strict=True)]
        missing = [i for i, result in enumerate(results) if isinstance(result, _FunctionMissing)]
        if missing:
            await self._load()
            again = await self._send_many([calls[i] for i in missing])
            for i, reply in zip(missing, again, strict=True):
                results[i] = _parsed(calls[i], reply)
        return results

    async def close(self) -> None:
        """Closes the sockets; a later call opens new ones."""
        await self._client.aclose()

    async def _load_if_needed(self, call: Call[Any]) -> None:
        if self._is_loaded or call.args[0] != "FCALL":
            return
        current = library.is_current()
        try:
            is_current = current.parse(await self._send(current))
        except _FunctionMissing:
            is_current = False
        if not is_current:
            await self._load()
        self._is_loaded = True

    async def _load(self) -> None:
        await self._send(library.load())

    async def _send(self, call: Call[Any]) -> Any:
        with _translated(self._where):
            return await self._client.execute_command(*call.args)

    async def _send_many(self, calls: Sequence[Call[Any]]) -> list[Any]:
        if not calls:
            return []
        with _translated(self._where):
            async with self._client.pipeline(transaction=False) as pipeline:
                for call in calls:
                    pipeline.execute_command(*call.args)
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return [_error_of(reply, self._where) for reply in replies]


class _FunctionMissing(ThinkstreamError):
    """The server has no function of that name: our library is to be loaded."""


class _translated:
    """Lets none of redis-py's exceptions out of a ``with`` block."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            ours = _error_of(error, self._where)
            if ours is not error:
                raise ours from error


def _parsed(call: Call[T], reply: Any) -> T | ThinkstreamError:
    if isinstance(reply, ThinkstreamError):
        return reply
    try:
        return call.parse(reply)
    except ThinkstreamError as error:
        return error


def _error_of(reply: Any, where: str) -> Any:
    """Returns our error for one of redis-py's; anything else comes back as it is."""
    import redis

    if not isinstance(reply, redis.RedisError | OSError):
        return reply
    text = str(reply)
    for kinds, words, make in _translations():
        if isinstance(reply, kinds) and (not words or any(word in text for word in words)):
            return make(where, text)
    return ServiceUnavailable(f"Redis at {where}: {text}")


@functools.cache
def _translations() -> tuple[tuple[Any, tuple[str, ...], Any], ...]:
    """What becomes of redis-py's exceptions: kinds, words in the text, our error; the first that fits."""
    from redis import exceptions as foreign

    denied = (foreign.AuthenticationError, foreign.AuthorizationError, foreign.NoPermissionError)
    return (
        (foreign.OutOfMemoryError, (), lambda where, text: QueueFull("memory", MEMORY_RETRY_MS)),
        (denied, (), lambda where, text: ConfigError(f"Redis at {where} refuses us: {text}")),
        (foreign.ResponseError, (_NO_FUNCTION,), lambda where, text: _FunctionMissing(text)),
        (
            foreign.ResponseError,
            ("WRONGPASS", "NOAUTH", "NOPERM", "invalid username-password"),
            lambda where, text: ConfigError(f"Redis at {where} refuses us: {text}"),
        ),
        (
            foreign.ResponseError,
            ("unknown command",),
            lambda where, text: ConfigError(f"Redis at {where} is too old: {text}"),
        ),
        (foreign.ResponseError, ("OOM ",), lambda where, text: QueueFull("memory", MEMORY_RETRY_MS)),
        (
            foreign.ResponseError,
            ("WRONGTYPE", "against a key holding the wrong"),
            lambda where, text: RecordInvalid(f"Redis at {where}: {text}"),
        ),
        (foreign.DataError, (), lambda where, text: RecordInvalid(text)),
    )


def _made(kind: Any, settings: RedisSettings, retry: Any, blocking: bool) -> Any:
    client = kind.from_url(
        settings.url,
        protocol=2,
        retry=retry,
        retry_on_error=[],
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=None if blocking else REPLY_TIMEOUT_S,
        health_check_interval=HEALTH_CHECK_S,
    )
    # Calls read raw replies themselves.
    client.response_callbacks.clear()
    return client
