"""Following many results at once: which streams to read from where, and what to do about silent ones.

A ``Follower`` is run by calling ``pump`` again and again. It reads all its streams with one blocking
command, asks for the status of jobs that stay silent, submits a vanished job again where its payload is at
hand, and reads on from the last index after a lost connection. It opens no socket.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from thinkstream_client.errors import (
    InvalidRequest,
    JobExpired,
    JobNotFound,
    RecordInvalid,
    ResultExpired,
    ServiceError,
    ServiceUnavailable,
    StreamForked,
    ThinkstreamError,
)
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.wire import RawEntry
from thinkstream_client.records import JobRef

from .effects import Backoff, Operation, Pipeline, Read, Results, Sleep
from .result_reader import News, ResultReader
from .submission import Submission

logger = logging.getLogger(__name__)

STATUS_EVERY_S = 2.5
"""A job that has been silent this long has its status asked."""
PATIENCE_S = 30.0
"""A lost connection is tried again this long before the error is passed on."""

_ENTRIES_PER_READ = 1024
_IDLE_MS = 20


class Reading(NamedTuple):
    """Something new about one job: a claim, a chunk, its end, or the error that ended the reading."""

    ref: JobRef
    what: News | ThinkstreamError


@dataclass(slots=True)
class _Followed:
    reader: ResultReader
    submission: Submission | None
    heard_s: float  # when its stream or its status last told something new
    has_ended: bool = False  # its status says so; the stream has yet to say how


class Follower:
    """Follows up to ``MAX_STREAMS`` results, all of one partition: in a Cluster one command reads no more.

    Args:
        keys: Tells the names of the keys, which may be known only once the first connection is made.
        patience_s: How long a lost connection is tried again.
        now: A monotonic clock in seconds.
    """

    def __init__(
        self,
        keys: Callable[[], Keys],
        *,
        patience_s: float = PATIENCE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys_now, self._patience_s, self._now = keys, patience_s, now
        self._backoff = Backoff(patience_s)
        self._incoming: deque[_Followed] = deque()  # appended to by other threads than the pumping one
        self._followed: dict[JobRef, _Followed] = {}

    def __len__(self) -> int:
        return len(self._followed) + len(self._incoming)

    @property
    def _keys(self) -> Keys:
        return self._keys_now()

    def follow(self, ref: JobRef, *, from_index: int = 0, submission: Submission | None = None) -> None:
        """Adds a job; its entries come with the next ``pump``. May be called from another thread.

        Args:
            ref: The job.
            from_index: Tokens that the caller has already.
            submission: Its payload, if this process submitted it just now. Without one, the first thing
                asked is whether the job exists.
        """
        is_fresh = submission is not None and not submission.has_ended
        heard_s = self._now() if is_fresh else float("-inf")
        self._incoming.append(_Followed(ResultReader(ref, from_index), submission, heard_s))

    def pump(self, block_ms: int) -> Operation[list[Reading]]:
        """Reads once and returns what came, which may be nothing.

        Args:
            block_ms: Time to wait for the first entry.

        Raises:
            ServiceUnavailable: The connection has been lost for longer than ``patience_s``.
        """
        while self._incoming:
            new = self._incoming.popleft()
            self._followed[new.reader.ref] = new
        if not self._followed:
            yield Sleep(min(block_ms, _IDLE_MS))
            return []
        readings: list[Reading] = []
        try:
            yield from self._ask_silent(readings)
            if self._followed:
                yield from self._read(block_ms, readings)
        except ServiceUnavailable as error:
            yield self._backoff.lost(error)
        else:
            self._backoff.restored()
        return readings

    def _read(self, block_ms: int, readings: list[Reading]) -> Operation[None]:
        ended = [ref for ref, one in self._followed.items() if one.has_ended]
        entries: Results = yield Read(
            keys=self._keys,
            positions={ref: one.reader.position for ref, one in self._followed.items()},
            block_ms=None if ended else block_ms,
            count=_ENTRIES_PER_READ,
        )
        for ref, stream in entries.items():
            readings.extend((yield from self._feed(ref, stream)))
        for ref in ended:
            if ref not in entries:  # sealed, and nothing left to read
                self._give_up(ref, ResultExpired(ref.job_id), readings)

    def _feed(self, ref: JobRef, entries: Sequence[RawEntry]) -> Operation[list[Reading]]:
        one = self._followed[ref]
        one.heard_s = self._now()
        try:
            news = one.reader.feed(entries)
        except StreamForked as forked:
            del self._followed[ref]
            return [Reading(ref, (yield from self._where_forked(one.reader, forked)))]
        except (InvalidRequest, RecordInvalid) as error:
            del self._followed[ref]
            return [Reading(ref, error)]
        if one.reader.finish is not None:
            del self._followed[ref]
            if one.submission is not None:
                one.submission.has_ended = True
        return [Reading(ref, what) for what in news]

    def _where_forked(self, reader: ResultReader, forked: StreamForked) -> Operation[StreamForked]:
        try:
            entries: Results = yield Read(
                keys=self._keys, positions={reader.ref: (0, 0)}, block_ms=None, count=None
            )
        except ServiceUnavailable:  # the fork is the news; its place can only be said less exactly
            return forked
        return StreamForked(reader.ref.job_id, reader.agreement_with(entries.get(reader.ref, ())))

    def _ask_silent(self, readings: list[Reading]) -> Operation[None]:
        now = self._now()
        silent = [one for one in self._followed.values() if now - one.heard_s >= STATUS_EVERY_S]
        if not silent:
            return
        calls = [functions.job_status(self._keys, one.reader.ref) for one in silent]
        replies: list[JobStatus | ThinkstreamError] = yield Pipeline(calls)
        vanished: list[_Followed] = []
        for one, reply in zip(silent, replies, strict=True):
            match reply:
                case JobNotFound() if one.submission is not None and not one.submission.has_ended:
                    vanished.append(one)
                case ServiceUnavailable():
                    raise reply
                case ThinkstreamError():
                    self._give_up(one.reader.ref, reply, readings)
                case _:
                    one.heard_s, one.has_ended = now, reply.is_terminal
        yield from self._resubmit(vanished, readings)

    def _resubmit(self, vanished: Sequence[_Followed], readings: list[Reading]) -> Operation[None]:
        again: list[tuple[_Followed, Submission]] = []
        for one in vanished:
            if one.submission is None or one.submission.is_late:
                self._give_up(one.reader.ref, JobExpired(one.reader.ref.job_id), readings)
            else:
                again.append((one, one.submission))
        if not again:
            return
        logger.warning("submitting %d jobs again that Redis has lost", len(again))
        replies: list[functions.Submitted | ThinkstreamError] = yield Pipeline(
            [submission.call(self._keys) for _, submission in again]
        )
        for (one, _), reply in zip(again, replies, strict=True):
            one.heard_s = self._now()
            one.reader.rewind_markers()
            if isinstance(reply, ThinkstreamError) and not isinstance(reply, ServiceError):
                self._give_up(one.reader.ref, reply, readings)

    def _give_up(self, ref: JobRef, error: ThinkstreamError, readings: list[Reading]) -> None:
        del self._followed[ref]
        readings.append(Reading(ref, error))
