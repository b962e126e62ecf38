"""A worker without a model: a thread drives the real functions with tokens that follow from the prompt."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from thinkstream_client.errors import Fenced
from thinkstream_client.outcome import Finish, FinishReason, JobFailure, Timings, Usage
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.wire_request import decode_request
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

LEASE_MS = 60_000
HELD_BACK = "!"
"""Text that a result's end brings."""


def tokens_of(request: Request) -> tuple[int, ...]:
    """The result of a request: as many tokens as it asks for, different for each prompt."""
    first = len(request.prompt or "")
    return tuple(range(first, first + (request.sampling.max_tokens or 8)))


def text_of(token_ids: tuple[int, ...]) -> str:
    return "".join(f"{token_id} " for token_id in token_ids)


@dataclass(slots=True)
class _Running:
    claimed: functions.Claimed
    request: Request
    num_done: int
    crc: int
    length: int


class Worker:
    """Claims and steps until it is stopped. ``allow(n)`` lets ``n`` more entries per job be published."""

    _names = itertools.count(1)

    def __init__(self, url: str, *, slots: int = 64) -> None:
        settings = RedisSettings(url)
        self._keys, self._connection = settings.keys, Connection(settings)
        self.session = SessionId(f"test.{next(self._names)}")
        self.requests: list[Request] = []
        self._slots = slots
        self._running: dict[JobRef, _Running] = {}
        self._stopping = threading.Event()
        self._allowed: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, allowed: int | None = None) -> Worker:
        self._allowed = allowed
        self._connection.run(
            functions.hello(
                self._keys,
                0,
                self.session,
                "nonce",
                replica="test",
                slots=self._slots,
                lease_ms=LEASE_MS,
                info={},
            )
        )
        self._thread.start()
        return self

    def beat(self, **info: str) -> None:
        self._connection.run(functions.beat(self._keys, 0, self.session, "nonce", info=info))

    def allow(self, entries: int | None) -> None:
        self._allowed = entries

    def die(self) -> None:
        """Stops without a word and lets its jobs go to the next one."""
        self.stop()
        self._connection.run(functions.reap(self._keys, 0, self.session))

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        self.stop()
        self._connection.close()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.002):
                self._claim()
                if self._running and self._allowed != 0:
                    self._step()
        except Fenced:
            return

    def _claim(self) -> None:
        for claimed in self._connection.run(functions.claim(self._keys, 0, self.session, self._slots)):
            request = decode_request(claimed.payload)
            self.requests.append(request)
            done = tokens_of(request)[: claimed.n]
            crc = wire.chain_crc(wire.initial_crc(claimed.ref.job_id), done)
            length = claimed.n // claimed.grain + claimed.mk
            self._running[claimed.ref] = _Running(claimed, request, claimed.n, crc, length)

    def _step(self) -> None:
        if self._allowed is not None:
            self._allowed -= 1
        rows: list[functions.StepRow] = []
        for ref, job in list(self._running.items()):
            grain, ids = job.claimed.grain, tokens_of(job.request)
            if (job.request.prompt or "").startswith("too long"):
                self._fail(ref)
            elif len(ids) - job.num_done <= grain:
                self._finish(ref, job, ids)
            else:
                entry = self._entry(job, ids[job.num_done : job.num_done + grain])
                rows.append(functions.StepRow(ref, job.length, entry, job.claimed.mk, grain))
                job.length += 1
        if not rows:
            return
        replies = self._connection.run(functions.step(self._keys, 0, self.session, "nonce", rows))
        for row, reply in zip(rows, replies, strict=True):
            if reply is not functions.StepReply.OK:
                del self._running[row.ref]

    def _entry(self, job: _Running, ids: tuple[int, ...]) -> bytes:
        job.num_done += len(ids)
        job.crc = wire.chain_crc(job.crc, ids)
        return wire.encode_entry(ids, job.crc, text_of(ids))

    def _finish(self, ref: JobRef, job: _Running, ids: tuple[int, ...]) -> None:
        del self._running[ref]
        last = self._entry(job, ids[job.num_done :])
        finish = Finish(
            reason=FinishReason.LENGTH,
            num_tokens=len(ids),
            text=HELD_BACK,
            usage=Usage(prompt_tokens=3, completion_tokens=len(ids)),
            timings=Timings(queued_ms=1, prefill_ms=20, first_token_ms=30, decode_ms=1400),
        )
        row = functions.FinishRow(
            ref=ref,
            expected_len=job.length,
            last_entry=last,
            terminal=wire.encode_terminal(finish),
            reason=finish.reason,
            num_tokens=len(ids),
            cost=1,
        )
        self._connection.run(functions.finish(self._keys, 0, self.session, "nonce", [row]))

    def _fail(self, ref: JobRef) -> None:
        del self._running[ref]
        failure = JobFailure(code="PromptTooLong", message="too [/long]", data={"num_tokens": 9, "limit": 4})
        self._connection.run(
            functions.fail(self._keys, 0, self.session, "nonce", ref, failure=failure, retry=False)
        )


@pytest.fixture
def make_worker() -> type[Worker]:
    """For tests that need another server, or more workers."""
    return Worker


@pytest.fixture
def worker(redis_url: str) -> Iterator[Worker]:
    """A worker that is not started yet."""
    worker = Worker(redis_url)
    yield worker
    worker.close()


@pytest.fixture
def next_worker(redis_url: str) -> Iterator[Worker]:
    """Another one, for what the first leaves behind."""
    worker = Worker(redis_url)
    yield worker
    worker.close()
