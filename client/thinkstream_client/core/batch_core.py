"""Thousands of jobs on a few connections: the part of a batch that both clients share.

The batch takes items as there is room, submits them many per round trip, lets several followers read their
results, and hands these out in the order of their ends. It opens no socket and starts no thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from thinkstream_client.errors import InvalidRequest, JobCancelled, QueueFull, StreamForked, ThinkstreamError
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, TokenChunk
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.call import Call
from thinkstream_client.records import JobRef

from .batch_end import closing_calls
from .batch_options import BatchOptions, BatchProgress
from .compose import BatchItem
from .effects import MAX_STREAMS, PER_PIPELINE, Operation, Sleep, ask_many
from .follow import Follower, Reading
from .result_reader import News
from .results import MAX_REWINDS, BatchResult, ResultBuilder, error_of
from .submission import Submission

BLOCK_MS = 250
"""How long a follower waits for an entry before it looks for new jobs to follow."""

_IDLE_S = 0.5


@dataclass(slots=True)
class _Live:
    item: BatchItem
    submission: Submission
    follower: Follower
    builder: ResultBuilder
    has_started: bool = False
    num_rewinds: int = 0


class BatchCore:
    """The state of one batch.

    Args:
        items: What to do; taken only as there is room.
        options: How.
        keys: Tells the names of the keys, which may be known only once the first connection is made.
        patience_s: How long a lost connection is tried again.
    """

    def __init__(
        self,
        items: Iterator[BatchItem],
        options: BatchOptions,
        keys: Callable[[], Keys],
        *,
        patience_s: float,
    ) -> None:
        self.followers: list[Follower] = []
        self._by_partition: dict[int, list[Follower]] = {}
        self.progress = BatchProgress()
        self.options = options
        self._items, self._keys_now, self._patience_s = items, keys, patience_s
        self._pending: deque[tuple[BatchItem, Submission]] = deque()  # taken, not yet submitted
        self._live: dict[JobRef, _Live] = {}
        self._results: deque[BatchResult] = deque()
        self._full_until_s = 0.0
        self._is_followed = True
        self._is_exhausted = self._is_closed = False

    @property
    def id(self) -> str:
        """The batch's id."""
        return self.options.batch_id

    @property
    def _keys(self) -> Keys:
        return self._keys_now()

    @property
    def is_finished(self) -> bool:
        """Whether every item has been answered and its result handed out."""
        return self._is_closed and not (self._pending or self._live or self._results)

    @property
    def wait_s(self) -> float:
        """How long to wait for readings before ``submit_some`` is worth another call."""
        if self._results or self.is_finished:
            return 0.0
        if len(self._live) >= self.options.max_in_flight or (self._is_exhausted and not self._pending):
            return _IDLE_S
        return min(_IDLE_S, max(0.0, self._full_until_s - time.monotonic()))

    def submit_some(self) -> Operation[None]:
        """Submits as many items as one round trip and the room in flight allow, and says which was the last.

        Raises:
            ServiceUnavailable: The connection has been lost for too long.
        """
        if time.monotonic() >= self._full_until_s:
            yield from self._submit()
        if self._is_exhausted and not (self._pending or self._is_closed):
            calls = closing_calls(self._keys, self.options.tenant, self.id)
            yield from ask_many(calls, self._patience_s)
            self._is_closed = True

    def submit_all(self) -> Operation[None]:
        """Submits every item that is left, whatever is in flight, and follows none of them.

        Raises:
            ServiceUnavailable: The connection has been lost for too long.
        """
        self._is_followed = False
        while not self._is_closed:
            yield from self.submit_some()
            left_s = self._full_until_s - time.monotonic()
            if self._pending and left_s > 0:
                yield Sleep(round(left_s * 1000))

    def cancel(self) -> Operation[None]:
        """Takes no more items and cancels the jobs in flight. The results of all taken items still come."""
        self._is_exhausted = True
        for item, submission in self._pending:
            self._fail(item, "", JobCancelled(submission.ref.job_id))
        self._pending.clear()
        refs = list(self._live)
        for start in range(0, len(refs), PER_PIPELINE):
            calls = [functions.cancel(self._keys, ref) for ref in refs[start : start + PER_PIPELINE]]
            yield from ask_many(calls, self._patience_s)

    def take(self, readings: Iterable[Reading]) -> Iterator[BatchResult]:
        """Takes what followers have read and yields the results that are whole."""
        for ref, what in readings:
            live = self._live.get(ref)
            if live is not None:
                self._take_reading(ref, live, what)
        while self._results:
            yield self._results.popleft()

    def _submit(self) -> Operation[None]:
        self._take_items()
        calls = self._calls()
        if not calls:
            return
        replies = yield from ask_many(calls, self._patience_s)
        asked, self._pending = self._pending, deque()
        for (item, submission), reply in zip(asked, replies, strict=True):
            if isinstance(reply, QueueFull):
                self._pending.append((item, submission))
                self._full_until_s = time.monotonic() + reply.retry_ms / 1000
            elif isinstance(reply, ThinkstreamError):
                self._fail(item, submission.ref.job_id, reply)
            elif self._is_followed:
                self._follow(item, submission)
            else:
                self._count(submitted=1)

    def _take_items(self) -> None:
        in_flight = len(self._live) + len(self._pending)
        room = min(self.options.max_in_flight - in_flight, PER_PIPELINE - len(self._pending))
        for _ in range(room):
            item = None if self._is_exhausted else next(self._items, None)
            if item is None:
                self._is_exhausted = True
                return
            ref = JobRef(self.options.tenant, self.options.job_id(item.custom_id))
            if item.request is None:
                self._fail(item, "", item.error or InvalidRequest("request", None, "given"))
            elif ref in self._live or any(ref == submission.ref for _, submission in self._pending):
                self._fail(item, "", InvalidRequest("custom_id", item.custom_id, "an id of its own"))
            else:
                self._pending.append((item, self.options.submission(ref, item.request)))

    def _calls(self) -> list[Call[functions.Submitted]]:
        """Returns what submits the pending items; one that makes no record fails alone."""
        calls: list[Call[functions.Submitted]] = []
        pending, self._pending = self._pending, deque()
        for item, submission in pending:
            try:
                calls.append(submission.call(self._keys))
            except InvalidRequest as error:
                self._fail(item, "", error)
            else:
                self._pending.append((item, submission))
        return calls

    def _follow(self, item: BatchItem, submission: Submission) -> None:
        followers = self._by_partition.setdefault(self._keys.partition_of(submission.ref), [])
        follower = next((one for one in followers if len(one) < MAX_STREAMS), None)
        if follower is None:
            follower = Follower(self._keys_now, patience_s=self._patience_s)
            followers.append(follower)
            self.followers.append(follower)
        follower.follow(submission.ref, submission=submission)
        builder = ResultBuilder(submission.ref.job_id)
        self._live[submission.ref] = _Live(item, submission, follower, builder)
        self._count(submitted=1)

    def _take_reading(self, ref: JobRef, live: _Live, what: News | ThinkstreamError) -> None:
        match what:
            case TokenChunk():
                live.builder.add(what)
                self._count(tokens=len(what.token_ids))
            case wire.Marker():
                self._count(started=0 if live.has_started else 1)
                live.has_started = True
            case Finish():
                self._end(ref, live, error_of(ref.job_id, what), what)
            case StreamForked() if live.num_rewinds < MAX_REWINDS:  # nobody has seen a token of it yet
                self._count(tokens=-live.builder.num_tokens)
                live.num_rewinds += 1
                live.builder = ResultBuilder(ref.job_id)
                live.follower.follow(ref, submission=live.submission)
            case _:
                self._end(ref, live, what, None)

    def _end(self, ref: JobRef, live: _Live, error: ThinkstreamError | None, finish: Finish | None) -> None:
        del self._live[ref]
        if not self._live:
            self._is_closed = False  # it is closed once more: Redis may have gone back behind the first time
        result = live.builder.build(finish)
        if error is None:
            self._count(done=1)
            self._results.append(BatchResult(item=live.item, job_id=ref.job_id, result=result))
        else:
            error.partial = result
            self._fail(live.item, ref.job_id, error)

    def _fail(self, item: BatchItem, job_id: str, error: ThinkstreamError) -> None:
        self._count(failed=1)
        self._results.append(BatchResult(item=item, job_id=job_id, error=error))

    def _count(self, **more: int) -> None:
        self.progress = replace(self.progress, **{k: getattr(self.progress, k) + n for k, n in more.items()})
