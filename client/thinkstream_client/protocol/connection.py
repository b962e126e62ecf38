"""The boundary to Redis: runs calls, and translates what goes wrong into our own errors.

Nothing is sent twice here: after a lost reply the caller alone knows whether that is safe. A ``Connection``
may be used by several threads, an ``AsyncConnection`` by several tasks of one loop. ``redis`` and ``asyncio``
are imported at the first connection, for they cost more than the rest of the client.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar, cast

from thinkstream_client.errors import (
    CommandRefused,
    ConfigError,
    QueueFull,
    RecordInvalid,
    ServiceUnavailable,
    ThinkstreamError,
)
from thinkstream_client.settings import RedisSettings

from . import library, servers
from .call import Call
from .servers import FromEach

T = TypeVar("T")

REPLY_TIMEOUT_S = 5.0
BLOCKED_TIMEOUT_S = 10.0
"""For calls that wait in Redis, which they do for far less: one that hangs is not waited for for ever."""
MEMORY_RETRY_MS = 2000


class Connection:
    """Runs calls on one server, on whichever the Sentinels name, or on those of a Cluster.

    Args:
        settings: Where it is.
        blocking: For calls that wait in Redis, each of them for less than ``BLOCKED_TIMEOUT_S``.

    Raises:
        ConfigError: An option in the URL is none, or a file that it names is not there.
    """

    def __init__(self, settings: RedisSettings, *, blocking: bool = False) -> None:
        self._where = settings.masked_url
        self._servers = servers.connect(settings, _timeout_s(blocking))
        self._loader = _Loader()

    def run(self, call: Call[T]) -> T:
        """Sends a call and reads its reply.

        Raises:
            ServiceUnavailable: No reply came; the call may have been carried out or not. Or the server says
                that it will answer later.
            CommandRefused: The server will never do it.
            QueueFull: The server's memory is full.
            ConfigError: The server refuses us, or cannot do what we need.
            ThinkstreamError: The refusals that the call's builder names.
        """
        return _or_raised(self.run_many([call])[0])

    def run_many(self, calls: Sequence[Call[T]]) -> list[T | ThinkstreamError]:
        """Sends calls in one pipeline, each by itself: a refusal stands in the place of a result.

        Raises:
            ServiceUnavailable: No replies came; each call may have been carried out or not.
        """
        dialogue = self._loader.dialogue(calls)
        replies: list[Any] | None = None
        while True:
            try:
                wanted = dialogue.send(replies)
            except StopIteration as end:
                return cast("list[T | ThinkstreamError]", end.value)
            replies = self._send(wanted)

    def close(self) -> None:
        """Closes the sockets; a later call opens new ones."""
        self._servers.close()

    def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        try:
            return [_translated(reply, self._where) for reply in self._servers.send(calls)]
        except Exception as error:
            return [_refusal_or_raised(error, self._where)]


class AsyncConnection:
    """Runs calls from an event loop; see ``Connection``."""

    def __init__(self, settings: RedisSettings, *, blocking: bool = False) -> None:
        self._where = settings.masked_url
        self._servers = servers.connect_async(settings, _timeout_s(blocking))
        self._loader = _Loader()

    async def run(self, call: Call[T]) -> T:
        """Sends a call and reads its reply; raises as ``Connection.run`` does."""
        return _or_raised((await self.run_many([call]))[0])

    async def run_many(self, calls: Sequence[Call[T]]) -> list[T | ThinkstreamError]:
        """Sends calls in one pipeline; returns and raises as ``Connection.run_many`` does."""
        dialogue = self._loader.dialogue(calls)
        replies: list[Any] | None = None
        while True:
            try:
                wanted = dialogue.send(replies)
            except StopIteration as end:
                return cast("list[T | ThinkstreamError]", end.value)
            replies = await self._send(wanted)

    async def close(self) -> None:
        """Closes the sockets; a later call opens new ones."""
        await self._servers.close()

    async def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        try:
            return [_translated(reply, self._where) for reply in await self._servers.send(calls)]
        except Exception as error:
            return [_refusal_or_raised(error, self._where)]


class _FunctionMissingError(ThinkstreamError):
    """The server has no function of that name: our library is to be loaded."""


class _Loader:
    """Sees to it that the server has our library; the same for both kinds of connection."""

    def __init__(self) -> None:
        self._is_loaded = False

    def dialogue(self, calls: Sequence[Call[Any]]) -> Generator[Sequence[Call[Any]], Any, list[Any]]:
        """Yields calls to be sent, is sent their replies, returns a result or a refusal per call."""
        if not calls:
            return []
        if not self._is_loaded and any(call.args[0] == "FCALL" for call in calls):
            yield from self._load_unless_current()
        replies = yield calls
        results = [_parsed(call, reply) for call, reply in zip(calls, replies, strict=True)]
        missing = [i for i, result in enumerate(results) if isinstance(result, _FunctionMissingError)]
        if missing:  # somebody has emptied the server; these calls did nothing
            yield from self._load()
            replies = yield [calls[i] for i in missing]
            for i, reply in zip(missing, replies, strict=True):
                results[i] = _parsed(calls[i], reply)
        return results

    def _load_unless_current(self) -> Generator[Sequence[Call[Any]], Any, None]:
        asked = library.is_current()
        (reply,) = yield [asked]
        is_current = _parsed(asked, reply)
        if isinstance(is_current, _FunctionMissingError) or is_current is False:
            yield from self._load()
        elif isinstance(is_current, ThinkstreamError):
            raise is_current
        self._is_loaded = True

    def _load(self) -> Generator[Sequence[Call[Any]], Any, None]:
        (reply,) = yield [library.load()]
        if isinstance(reply, ThinkstreamError):
            raise reply


def _parsed(call: Call[T], reply: Any) -> T | ThinkstreamError:
    if isinstance(reply, ThinkstreamError):
        return call.refused(reply)
    if isinstance(reply, FromEach):
        found: list[Any] = [_parsed(call, one) for one in reply.replies]
        # Servers of a Cluster should be of one mind: what one of them refuses or denies is the answer.
        doubts = [one for one in found if one is False or isinstance(one, ThinkstreamError)]
        return cast("T", (doubts or found)[0])
    try:
        return call.parse(reply)
    except ThinkstreamError as error:
        return error


def _or_raised(result: T | ThinkstreamError) -> T:
    if isinstance(result, ThinkstreamError):
        raise result
    return result


def _refusal_or_raised(error: Exception, where: str) -> Any:
    """Returns what stands for the server's refusal of a single call; raises where no reply came."""
    import redis

    ours = _translated(error, where)
    if isinstance(error, redis.ResponseError):
        return ours
    raise ours from error


def _translated(reply: Any, where: str) -> Any:
    """Returns our error for one of redis-py's; anything else comes back as it is."""
    from redis import exceptions as foreign

    if not isinstance(reply, foreign.RedisError | foreign.RedisClusterException | OSError):
        return reply
    text = str(reply)
    if isinstance(reply, foreign.OutOfMemoryError):
        return QueueFull("memory", MEMORY_RETRY_MS)
    if isinstance(
        reply, foreign.AuthenticationError | foreign.AuthorizationError | foreign.NoPermissionError
    ):
        return ConfigError(f"Redis at {where} refuses us: {text}")
    if isinstance(reply, foreign.ConnectionError) and "CERTIFICATE_VERIFY_FAILED" in text:
        return ConfigError(f"the certificate of Redis at {where} is not one that we trust: {text}")
    return _kind(reply, text)(f"Redis at {where}: {text}")


def _kind(error: Exception, text: str) -> type[ThinkstreamError]:
    """Which error of ours one of redis-py's is, of those that only differ in their kind."""
    from redis import exceptions as foreign

    if isinstance(error, foreign.DataError):
        return CommandRefused
    if not isinstance(error, foreign.ResponseError):
        return ServiceUnavailable
    for word, kind in _BY_WORD.items():
        if word in text:
            return kind
    passing = (foreign.ClusterDownError, foreign.ReadOnlyError, foreign.TryAgainError, foreign.AskError)
    if isinstance(error, passing) or text.startswith(_PASSING):
        return ServiceUnavailable
    return CommandRefused


_BY_WORD: dict[str, type[ThinkstreamError]] = {
    "Function not found": _FunctionMissingError,
    "unknown command": ConfigError,  # older than Redis 7.0
    "appendonly is disabled": ConfigError,  # to WAITAOF
    "NOAUTH": ConfigError,
    "WRONGPASS": ConfigError,
    "WRONGTYPE": RecordInvalid,
    "wrong kind of value": RecordInvalid,
}
"""What errors of the server mean that redis-py has no class for."""


_PASSING = ("BUSY ", "MISCONF ", "NOREPLICAS ", "UNBLOCKED ")
"""First words of refusals that pass: a script runs, the disk is full, replicas are away, the role changed."""


def _timeout_s(blocking: bool) -> float:
    return BLOCKED_TIMEOUT_S if blocking else REPLY_TIMEOUT_S
