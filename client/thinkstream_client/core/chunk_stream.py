"""One job's result as a sequence of chunks, or as a whole; shared by both clients."""

from __future__ import annotations

import time
from collections import deque

from thinkstream_client.errors import ThinkstreamError
from thinkstream_client.outcome import Finish, JobResult, TokenChunk
from thinkstream_client.records import JobRef

from .effects import Operation
from .follow import Follower, Reading
from .results import ResultBuilder, error_of
from .submission import Submission

_BLOCK_MS = 1000


class ChunkStream:
    """Hands out one job's chunks in order.

    Args:
        follower: Reads for this stream alone.
        ref: The job.
        from_index: Tokens that the caller has already.
        submission: Its payload, if this process submitted it.
        timeout_s: How long to wait for the end, from now on; None is for ever.
    """

    def __init__(
        self,
        follower: Follower,
        ref: JobRef,
        *,
        from_index: int = 0,
        submission: Submission | None = None,
        timeout_s: float | None = None,
    ) -> None:
        follower.follow(ref, from_index=from_index, submission=submission)
        self.finish: Finish | None = None
        self._follower, self._ref = follower, ref
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._ready: deque[Reading] = deque()
        self._builder = ResultBuilder(ref.job_id)
        self._error: ThinkstreamError | None = None

    def next_chunk(self) -> Operation[TokenChunk | None]:
        """Returns the next chunk, or None at the end of a job that is done.

        Raises:
            ThinkstreamError: How the job ended otherwise, with ``partial`` set to what this stream gave.
            TimeoutError: The end did not come in time; the stream can be read on.
        """
        while self.finish is None and self._error is None:
            if not self._ready:
                self._ready.extend((yield from self._follower.pump(self._block_ms())))
                continue
            what = self._ready.popleft().what
            if isinstance(what, TokenChunk):
                self._builder.add(what)
                return what
            if isinstance(what, Finish):
                self.finish, self._error = what, error_of(self._ref.job_id, what)
            elif isinstance(what, ThinkstreamError):
                self._error = what
        if self._error is not None:
            self._error.partial = self._builder.build(self.finish)
            raise self._error
        return None

    def drain(self) -> Operation[JobResult]:
        """Reads to the end and returns what this stream gave.

        Raises:
            ThinkstreamError: As ``next_chunk``.
            TimeoutError: As ``next_chunk``.
        """
        while (yield from self.next_chunk()) is not None:
            pass
        return self._builder.build(self.finish)

    def _block_ms(self) -> int:
        if self._end_s is None:
            return _BLOCK_MS
        left_ms = round((self._end_s - time.monotonic()) * 1000)
        if left_ms <= 0:
            raise TimeoutError(f"job {self._ref.job_id}: no end in the given time")
        return min(left_ms, _BLOCK_MS)
