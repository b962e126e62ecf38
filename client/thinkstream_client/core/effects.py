"""How an operation is written once and run by both clients.

An operation is a generator: it yields what it needs done (one command, several in a pipeline, a command
that waits, a pause) and is sent the reply, or has the error thrown into it. It opens no socket and never
waits by itself. ``client`` runs operations on a blocking connection, ``aio`` on an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from thinkstream_client.errors import ServiceUnavailable, ThinkstreamError
from thinkstream_client.keys import Keys
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.read_calls import read_results
from thinkstream_client.protocol.wire import RawEntry
from thinkstream_client.records import JobRef

T = TypeVar("T")

PER_PIPELINE = 128
"""Calls per pipeline where there are many, so that none of them holds up the server for long."""
MAX_STREAMS = 256
"""Streams per command that reads."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for a while."""

    ms: int


Results = dict[JobRef, list[RawEntry]]
"""What result streams hold, of those that have something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Read result streams of one partition, on a connection kept for commands that may wait in Redis.

    See ``read_results``.
    """

    keys: Keys
    positions: Mapping[JobRef, tuple[int, int]]
    block_ms: int | None
    count: int | None

    @property
    def partition(self) -> int:
        """The partition of all its streams."""
        return self.keys.partition_of(next(iter(self.positions)))

    def call(self) -> Call[Results]:
        """Returns the command."""
        return read_results(self.keys, self.positions, block_ms=self.block_ms, count=self.count)


@dataclass(frozen=True, slots=True)
class Wait:
    """Run a call that waits in Redis, on a connection kept for such."""

    call: Call[Any]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Run several calls at once; the reply is a list with a refusal in the place of a result."""

    calls: Sequence[Call[Any]]


Effect = Call[Any] | Read | Wait | Pipeline | Sleep
Operation = Generator[Effect, Any, T]


class Run(Protocol):
    """Runs an operation to its end on a blocking connection."""

    def __call__(self, operation: Operation[T], /) -> T:  # noqa: D102
        ...


class AsyncRun(Protocol):
    """Runs an operation to its end on an event loop."""

    async def __call__(self, operation: Operation[T], /) -> T:  # noqa: D102
        ...


class Backoff:
    """When to try a lost connection again, and when to give up.

    Args:
        patience_s: Time without a connection after which the error is passed on.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lost_at: float | None = None
        self._next_ms = 50

    def lost(self, error: ServiceUnavailable) -> Sleep:
        """Returns the pause before the next try.

        Raises:
            ServiceUnavailable: ``error`` itself, when patience is at its end.
        """
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        if now - self._lost_at >= self._patience_s:
            raise error
        pause, self._next_ms = Sleep(self._next_ms), min(2 * self._next_ms, 2000)
        return pause

    def restored(self) -> None:
        """Starts afresh: the service answered."""
        self._lost_at, self._next_ms = None, 50


def ask(call: Call[T], patience_s: float) -> Operation[T]:
    """Runs one idempotent call, again after a lost connection.

    Raises:
        ServiceUnavailable: Nobody answered for ``patience_s``.
    """
    backoff = Backoff(patience_s)
    while True:
        try:
            reply: T = yield call
        except ServiceUnavailable as error:
            pause = backoff.lost(error)
        else:
            return reply
        yield pause


def ask_many(calls: Sequence[Call[T]], patience_s: float) -> Operation[list[T | ThinkstreamError]]:
    """Runs idempotent calls in one pipeline, again after a lost connection.

    Returns:
        A result or a refusal per call.

    Raises:
        ServiceUnavailable: Nobody answered for ``patience_s``.
    """
    backoff = Backoff(patience_s)
    while True:
        try:
            replies: list[T | ThinkstreamError] = yield Pipeline(calls)
            lost = next((reply for reply in replies if isinstance(reply, ServiceUnavailable)), None)
            if lost is None:
                return replies
            pause = backoff.lost(lost)
        except ServiceUnavailable as error:
            pause = backoff.lost(error)
        yield pause
