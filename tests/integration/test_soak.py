"""After any amount of work nothing is left behind: clients, sessions that die, batches, tenants that leave.

Sixteen tenants' jobs are submitted, streamed, cancelled, left to expire and failed by sessions that die
again and again. Then a day passes: what expires is made to, and what is due is done.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from thinkstream_client.errors import QueueFull
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobFailure
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed, FinishRow, StepReply, StepRow
from thinkstream_client.records import JobRef, Request, SamplingParams, SessionId
from thinkstream_client.settings import RedisSettings

KEYS = Keys()
FIXED = {"meta", "wfq:0", "wfq:1", "wfq:2", "tenants", "events", "dead"}
"""Keys that every namespace has; their size does not grow with the jobs that went through."""
NUM_TENANTS, SLOTS, MAX_TOKENS = 16, 32, 6
SLACK_BYTES = 256 * 1024
FAILURE = JobFailure(code="JobFailed", message="no")


@dataclass(slots=True)
class Running:
    """A job as its session knows it."""

    claimed: Claimed
    length: int


class Soak:
    """A namespace under random work from one thread, so that a seed repeats it."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self._connection = Connection(RedisSettings(url))
        self.run = self._connection.run
        self.raw: Any = redis.Redis.from_url(url, decode_responses=True)
        self.num_jobs = 0
        self._num_sessions = 0
        self._running: dict[JobRef, Running] = {}
        self._session = SessionId("")
        for number in range(4):
            self.run(functions.tenant_set(KEYS, 0, f"t{number}", max_jobs=20, max_running=9))

    def start(self) -> None:
        """Makes a session known."""
        self._num_sessions += 1
        self._session = SessionId(f"w.{self._num_sessions}")
        call = functions.hello(
            KEYS, 0, self._session, "n", replica="w", slots=SLOTS, lease_ms=600_000, info={}
        )
        self.run(call)

    def turn(self) -> None:
        """One round of everything."""
        chance = self.random.random
        self._submit(self.random.randint(1, 16))
        for one in self.run(functions.claim(KEYS, 0, self._session, SLOTS)):
            self._running[one.ref] = Running(one, one.n // one.grain + one.mk)
        self._step()
        self._end_some()
        if chance() < 0.05:
            self._die()
        if chance() < 0.2:
            self.sweep()

    def drain(self) -> None:
        """Works on until nothing waits or runs."""
        while True:
            for one in self.run(functions.claim(KEYS, 0, self._session, SLOTS)):
                self._running[one.ref] = Running(one, one.n // one.grain + one.mk)
            for ref in list(self._running):
                self._finish(ref)
            self._make_due("retry:")
            swept = self.sweep()
            backlog = self.run(functions.backlog(KEYS, 0))
            waits = swept or backlog.num_jobs or backlog.running or backlog.retrying
            if not waits and not self.raw.exists(KEYS.batches(0)):
                return

    def sweep(self) -> int:
        swept = self.run(functions.sweep(KEYS, 0))
        return swept.retried + swept.expired + swept.repaired

    def pass_a_day(self) -> None:
        """Lets the session end, everything expire that can, and does what is due."""
        self.run(functions.bye(KEYS, 0, self._session, "n"))
        expiring = [key for key, ttl in self._ttls().items() if ttl >= 0]
        for start in range(0, len(expiring), 1000):
            self.raw.delete(*expiring[start : start + 1000])
        ended = KEYS.ended(0)
        self.raw.zadd(ended, dict.fromkeys(self.raw.zrange(ended, 0, -1), 1))
        while self.raw.zcard(ended):
            self.sweep()
        for _ in range(64):
            self.sweep()

    def left(self) -> set[str]:
        """The keys that are there, without the prefix."""
        prefix = KEYS.prefix(0)
        return {key.removeprefix(prefix).removeprefix("ts:") for key in self.raw.scan_iter("*", count=1000)}

    def kinds_without_ttl(self) -> Counter[str]:
        """How many keys of each kind would stay for ever."""
        prefix = KEYS.prefix(0)
        return Counter(
            name.removeprefix(prefix).partition(":")[0] for name, ttl in self._ttls().items() if ttl == -1
        )

    def used_bytes(self) -> int:
        return int(self.raw.info("memory")["used_memory_dataset"])

    def close(self) -> None:
        self._connection.close()
        self.raw.close()

    def _ttls(self) -> dict[str, int]:
        names = list(self.raw.scan_iter("*", count=1000))
        with self.raw.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.ttl(name)
            return dict(zip(names, pipe.execute(), strict=True))

    def _submit(self, count: int) -> None:
        for _ in range(count):
            self.num_jobs += 1
            tenant = f"t{self.random.randrange(NUM_TENANTS)}"
            request = Request(
                prompt="x" * self.random.randint(1, 50),
                grain=self.random.choice((1, 1, 2)),
                sampling=SamplingParams(max_tokens=MAX_TOKENS),
                tags=self.random.choice(((), ("tag",))),
            )
            batch = self.random.choice((None, f"b{self.num_jobs // 100}"))
            ref = JobRef(tenant, f"j{self.num_jobs}")
            deadline_ms = self.random.choice((None, None, 50))
            priority = self.random.randrange(3)
            try:
                self.run(
                    functions.submit(
                        KEYS, ref, request, priority=priority, deadline_ms=deadline_ms, batch=batch
                    )
                )
            except QueueFull:
                continue
            if self.random.random() < 0.1:
                self.run(functions.cancel(KEYS, ref))
            if batch and self.random.random() < 0.2:
                self.run(functions.batch_close(KEYS, 0, tenant, batch))

    def _step(self) -> None:
        rows = [
            StepRow(
                ref,
                one.length,
                wire.encode_entry([7] * one.claimed.grain, 0, ""),
                one.claimed.mk,
                one.claimed.grain,
            )
            for ref, one in self._running.items()
        ]
        for row, reply in zip(rows, self.run(functions.step(KEYS, 0, self._session, "n", rows)), strict=True):
            if reply is StepReply.OK:
                self._running[row.ref].length += 1
            else:
                del self._running[row.ref]

    def _end_some(self) -> None:
        for ref in self.random.sample(sorted(self._running), len(self._running) // 3):
            fate = self.random.random()
            if fate < 0.8:
                self._finish(ref)
                continue
            del self._running[ref]
            if fate < 0.9:
                call = functions.fail(KEYS, 0, self._session, "n", ref, failure=FAILURE, retry=fate < 0.88)
                self.run(call)
            elif fate < 0.95:
                self.run(functions.cancel(KEYS, ref))
            else:
                self.run(functions.release(KEYS, 0, self._session, "n", [ref]))

    def _finish(self, ref: JobRef) -> None:
        one = self._running.pop(ref)
        num_tokens = (one.length - one.claimed.mk) * one.claimed.grain
        row = FinishRow(
            ref=ref,
            expected_len=one.length,
            last_entry=None,
            terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=num_tokens)),
            reason=FinishReason.STOP,
            num_tokens=num_tokens,
            cost=num_tokens + 3,
        )
        self.run(functions.finish(KEYS, 0, self._session, "n", [row]))

    def _die(self) -> None:
        self.run(functions.reap(KEYS, 0, self._session))
        self._running.clear()
        self.start()

    def _make_due(self, kind: str) -> None:
        due = [one for one in self.raw.zrange(KEYS.due(0), 0, -1) if one.startswith(kind)]
        if due:
            self.raw.zadd(KEYS.due(0), dict.fromkeys(due, 1))


@pytest.fixture
def soak(redis_url: str) -> Iterator[Soak]:
    soak = Soak(redis_url, seed=1)
    yield soak
    soak.close()


def live_and_let_go(soak: Soak, duration_s: float) -> None:
    """Works for so long, lets a day pass, and looks at what is left."""
    soak.start()
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        soak.turn()
    soak.drain()
    stays = soak.kinds_without_ttl()
    listings = {"ended", "jobs", "tag"}  # they forget a job a day after its result
    assert stays.keys() <= {name.partition(":")[0] for name in FIXED} | listings | {"session", "leases"}
    soak.pass_a_day()
    assert soak.left() <= FIXED
    for priority in range(3):
        fields = soak.raw.hkeys(KEYS.wfq(0, priority))
        assert not [field for field in fields if field.startswith("vt:")], "tenants that have left"
    assert soak.raw.xlen(KEYS.dead(0)) <= 1100 and soak.raw.xlen(KEYS.events(0)) <= 10_200


def check_soak(soak: Soak, duration_s: float) -> None:
    live_and_let_go(soak, duration_s / 2)
    soak.raw.delete(KEYS.events(0), KEYS.dead(0))
    before = soak.used_bytes()
    num_before = soak.num_jobs
    live_and_let_go(soak, duration_s / 2)
    soak.raw.delete(KEYS.events(0), KEYS.dead(0))
    assert soak.num_jobs - num_before > 100
    assert soak.used_bytes() - before < SLACK_BYTES, f"{soak.num_jobs} jobs left more than nothing"


def test_nothing_is_left(soak: Soak) -> None:
    check_soak(soak, 8.0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_is_left_after_a_long_time(soak: Soak) -> None:
    check_soak(soak, 900.0)
