"""Random calls in random order: whatever happens, every job is in one place and the counters are right."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest
import redis

from thinkstream_client.errors import Fenced, QueueFull
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobFailure, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import FinishRow, StepReply, StepRow
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings

KEYS = Keys()
NUM_CALLS = 500


class World:
    """Clients, sessions and a scheduler that act at random, and the model of what workers believe."""

    def __init__(self, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.run = Connection(RedisSettings(url)).run
        self.raw: Any = redis.Redis.from_url(url)
        self.refs: dict[JobRef, int] = {}  # with the grain
        self.owned: dict[SessionId, dict[JobRef, tuple[int, int]]] = {}  # marker and length
        self.num_sessions = 0
        for tenant in "ab":
            self.run(functions.tenant_set(KEYS, 0, tenant, weight=2, max_jobs=30, max_running=4))

    def submit(self) -> None:
        ref = JobRef(self.random.choice("abc"), f"j{len(self.refs)}")
        request = Request(prompt="x" * self.random.randint(1, 9), grain=self.random.choice((1, 1, 3)))
        deadline_ms = self.random.choice((None, None, 1, 30))
        call = functions.submit(
            KEYS, ref, request, priority=self.random.randint(0, 2), deadline_ms=deadline_ms
        )
        try:
            self.run(call)
        except QueueFull:
            return
        self.refs[ref] = request.grain

    def hello(self) -> None:
        if len(self.owned) < 3:
            self.num_sessions += 1
            session = SessionId(f"w.{self.num_sessions}")
            self.run(functions.hello(KEYS, 0, session, "n", replica="w", slots=5, lease_ms=60_000, info={}))
            self.owned[session] = {}

    def claim(self) -> None:
        session = self.random.choice(list(self.owned))
        for one in self.run(functions.claim(KEYS, 0, session, self.random.randint(1, 5))):
            self.owned[session][one.ref] = (one.mk, one.n // one.grain + one.mk)

    def step(self) -> None:
        session = self.random.choice(list(self.owned))
        rows = [
            StepRow(ref, length, wire.encode_entry([7] * self.refs[ref], 0, ""), mk, self.refs[ref])
            for ref, (mk, length) in self.owned[session].items()
        ]
        for row, reply in zip(rows, self.run(functions.step(KEYS, 0, session, "n", rows)), strict=True):
            if reply is StepReply.OK:
                self.owned[session][row.ref] = (row.mk, row.expected_len + 1)
            else:
                del self.owned[session][row.ref]

    def finish(self) -> None:
        session, ref = self.pick()
        if ref is None:
            return
        mk, length = self.owned[session].pop(ref)
        grain = self.refs[ref]
        last = self.random.randint(0, grain)
        num_tokens = (length - mk) * grain + last
        row = FinishRow(
            ref=ref,
            expected_len=length,
            last_entry=wire.encode_entry([7] * last, 0, "") if last else None,
            terminal=wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=num_tokens)),
            reason=FinishReason.STOP,
            num_tokens=num_tokens,
            cost=num_tokens + 3,
        )
        self.run(functions.finish(KEYS, 0, session, "n", [row]))

    def fail(self) -> None:
        session, ref = self.pick()
        if ref is not None:
            del self.owned[session][ref]
            failure = JobFailure(code="JobFailed", message="")
            retry = self.random.random() < 0.8
            self.run(functions.fail(KEYS, 0, session, "n", ref, failure=failure, retry=retry))

    def release(self) -> None:
        session, ref = self.pick()
        if ref is not None:
            del self.owned[session][ref]
            self.run(functions.release(KEYS, 0, session, "n", [ref]))

    def cancel(self) -> None:
        if self.refs:
            self.run(functions.cancel(KEYS, self.random.choice(list(self.refs))))

    def reap(self) -> None:
        session, ref = self.pick()
        self.run(functions.beat(KEYS, 0, session, "n", alone=self.random.choice((ref, None))))
        self.run(functions.reap(KEYS, 0, session))
        with pytest.raises(Fenced):
            self.run(functions.beat(KEYS, 0, session, "n"))
        del self.owned[session]
        self.hello()

    def sweep(self) -> None:
        for name in self.raw.zrange(KEYS.due(0), 0, -1):
            if name.startswith(b"retry:"):  # no waiting for the backoff
                self.raw.zadd(KEYS.due(0), {name: 1})
        assert self.run(functions.sweep(KEYS, 0)).repaired == 0

    def pick(self) -> tuple[SessionId, JobRef | None]:
        session = self.random.choice(list(self.owned))
        refs = list(self.owned[session])
        return session, self.random.choice(refs) if refs else None

    def check(self) -> None:
        counted: Counter[str] = Counter()
        running = 0
        for ref in self.refs:
            info = self.run(functions.job_info(KEYS, ref))
            running += info.status is JobStatus.RUNNING
            assert self.places(ref, info) == {
                JobStatus.QUEUED: 1, JobStatus.WAITING: 1, JobStatus.RUNNING: 2,
            }.get(info.status, 0), (ref, info)  # fmt: skip
            if not info.status.is_terminal:
                what = "running" if info.status is JobStatus.RUNNING else "queued"
                counted[f"{ref.tenant}:{what}"] += 1
                if what == "queued":
                    counted[f"{ref.tenant}:bytes"] += int(self.raw.hget(KEYS.job(ref), "bytes"))
            self.check_stream(ref, info)
        usage = {name.decode(): int(value) for name, value in self.raw.hgetall(KEYS.usage(0)).items()}
        assert usage == dict(counted)
        assert self.raw.zcard(KEYS.running(0)) == running

    def places(self, ref: JobRef, info: functions.JobInfo) -> int:
        """In how many places the job waits or is owned."""
        name = f"{ref.tenant}:{ref.job_id}"
        queue = self.raw.xrange(KEYS.queue(0, info.priority, ref.tenant))
        return sum(
            (
                sum(fields[b"job"] == ref.job_id.encode() for _, fields in queue),
                self.raw.zscore(KEYS.again(0, info.priority), name) is not None,
                self.raw.zscore(KEYS.due(0), f"retry:{name}") is not None,
                info.owner is not None and self.raw.hexists(KEYS.own(0, info.owner), name),
                self.raw.zscore(KEYS.running(0), name) is not None,
            )
        )

    def check_stream(self, ref: JobRef, info: functions.JobInfo) -> None:
        found = self.run(functions.read_results(KEYS, {ref: 0}, block_ms=None, count=None)).get(ref, [])
        num_tokens, mk = 0, 0
        for place, entry in enumerate(found, 1):
            match entry:
                case wire.Entry():
                    assert entry.index == num_tokens + len(entry.token_ids)
                    num_tokens = entry.index
                case wire.Marker():
                    mk += 1
                    assert (entry.num_tokens, entry.mk) == (num_tokens, mk)
                case wire.Terminal():
                    assert place == len(found)
                    assert info.status.is_terminal
                    assert (entry.finish.num_tokens, entry.finish.reason) == (num_tokens, info.reason)
                case wire.Broken():
                    pytest.fail(str(entry))
        assert info.mk == mk
        if info.status.is_terminal:
            assert info.n == num_tokens
            assert isinstance(found[-1], wire.Terminal)


@pytest.mark.parametrize("seed", range(3))
def test_every_job_is_in_one_place(any_redis_url: str, seed: int) -> None:
    world = World(any_redis_url, seed)
    world.hello()
    often = [world.submit, world.claim, world.step] * 4
    calls = [*often, world.finish, world.fail, world.release, world.cancel, world.sweep, world.hello]
    for number in range(NUM_CALLS):
        world.random.choice([*calls, world.reap])()
        if number % 50 == 0:
            world.check()
            time.sleep(0.002)
    world.check()
    # Whatever is left can be brought to an end.
    for _ in range(200):
        world.sweep()
        world.hello()
        for session in world.owned:
            for one in world.run(functions.claim(KEYS, 0, session, 5)):
                world.owned[session][one.ref] = (one.mk, one.n // one.grain + one.mk)
        for _ in range(15):
            world.finish()
    world.check()
    statuses = {world.run(functions.job_status(KEYS, ref)) for ref in world.refs}
    assert all(status.is_terminal for status in statuses)
    assert JobStatus.DONE in statuses
    world.raw.close()
