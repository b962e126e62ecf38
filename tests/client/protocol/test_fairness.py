"""Who is served next: deterministic, for claims depend on nothing but the order of the calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import FinishRow
from thinkstream_client.records import JobRef, Request, SamplingParams, SessionId
from thinkstream_client.settings import RedisSettings

KEYS, SESSION, SLOTS = Keys(), SessionId("w.1"), 8


class Queue:
    """One session of eight slots, and the tenants that it has served, in order."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(RedisSettings(url))
        self.run = self._connection.run
        self.run(functions.hello(KEYS, 0, SESSION, "n", replica="w", slots=SLOTS, lease_ms=60_000, info={}))
        self.served: list[str] = []
        self._running: list[JobRef] = []

    def submit(self, tenant: str, count: int, *, max_tokens: int = 100, priority: int = 1) -> None:
        request = Request(prompt="hi", sampling=SamplingParams(max_tokens=max_tokens))
        calls = [
            functions.submit(KEYS, JobRef(tenant, f"{priority}-{number}"), request, priority=priority)
            for number in range(count)
        ]
        assert all(not isinstance(one, Exception) for one in self._connection.run_many(calls))

    def claim(self) -> None:
        for one in self.run(functions.claim(KEYS, 0, SESSION, SLOTS)):
            self.served.append(one.ref.tenant)
            self._running.append(one.ref)

    def finish_oldest(self, *, cost: int) -> None:
        terminal = wire.encode_terminal(Finish(reason=FinishReason.STOP, num_tokens=0))
        row = FinishRow(
            ref=self._running.pop(0),
            expected_len=1,
            last_entry=None,
            terminal=terminal,
            reason=FinishReason.STOP,
            num_tokens=0,
            cost=cost,
        )
        self.run(functions.finish(KEYS, 0, SESSION, "n", [row]))

    def serve(self, count: int, *, cost: int = 101) -> None:
        """Has so many slots become free, one after the other."""
        for _ in range(count):
            self.finish_oldest(cost=cost)
            self.claim()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = Queue(redis_url)
    yield queue
    queue.close()


@pytest.mark.parametrize("served_before", [0, 100])
@pytest.mark.parametrize("cost", [101, 30, 500], ids=["as charged", "shorter", "longer"])
def test_a_thousand_jobs_delay_another_tenant_by_no_job(queue: Queue, served_before: int, cost: int) -> None:
    queue.submit("big", 1000)
    queue.claim()
    queue.serve(served_before, cost=cost)
    del queue.served[:]
    queue.submit("small", 1)
    queue.serve(2, cost=cost)
    assert "small" in queue.served, "at most one job of the big tenant goes first for a free slot"


def test_all_slots_become_free_at_once(queue: Queue) -> None:
    queue.submit("big", 1000)
    queue.submit("small", 3)
    queue.claim()
    assert queue.served.index("small") <= 1
    assert queue.served.count("small") == 3, "its next ones take turns with those of the big tenant"


def test_a_newcomer_is_not_served_for_the_time_it_was_away(queue: Queue) -> None:
    queue.submit("big", 200)
    queue.claim()
    queue.serve(50)
    del queue.served[:]
    queue.submit("new", 100)
    queue.serve(20)
    assert 9 <= queue.served.count("new") <= 11


def test_shares_follow_weights_and_tokens(queue: Queue) -> None:
    queue.run(functions.tenant_set(KEYS, 0, "heavy", weight=3))
    queue.submit("heavy", 100)
    queue.submit("light", 100)
    queue.submit("long", 100, max_tokens=300)
    queue.claim()
    queue.serve(66)
    counts = [queue.served.count(tenant) for tenant in ("heavy", "light", "long")]
    assert sum(counts) == 74
    assert 40 <= counts[0] <= 58 and 12 <= counts[1] <= 22, counts


def test_classes_come_first_and_none_starves(queue: Queue) -> None:
    queue.submit("urgent", 200, priority=0)
    queue.submit("patient", 50, priority=2)
    queue.claim()
    queue.serve(72)
    assert queue.served.count("patient") == 10, "every eighth"


@pytest.mark.parametrize("ends", ["before", "after"])
@pytest.mark.parametrize(
    "lift",
    [
        functions.tenant_set(KEYS, 0, "fast", max_tokens_per_s=0),
        functions.tenant_drop(KEYS, 0, "fast"),
    ],
    ids=["lifted", "dropped"],
)
def test_a_rate_that_is_lifted_leaves_nothing_behind(queue: Queue, lift: Call[None], ends: str) -> None:
    queue.run(functions.tenant_set(KEYS, 0, "fast", max_tokens_per_s=10))
    queue.submit("fast", 1)
    queue.claim()
    assert queue.served == ["fast"]
    if ends == "after":
        queue.run(lift)
    queue.finish_oldest(cost=500)
    if ends == "before":
        queue.run(lift)
    assert queue.run(functions.tenants(KEYS, 0)) == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-5", "0", "1e400", "x", ""])
@pytest.mark.parametrize(
    ("key", "field"),
    [
        (KEYS.tenants(0), "weight"),
        (KEYS.tenants(0), "running"),
        (KEYS.tenants(0), "rate"),
        (KEYS.usage(0), "level"),
        (KEYS.usage(0), "level_ms"),
        (KEYS.usage(0), "running"),
        (KEYS.wfq(0, 1), "vt"),
    ],
)
def test_a_setting_that_is_no_number_stops_nobody(redis_url: str, key: str, field: str, value: str) -> None:
    queue = Queue(redis_url)
    raw: Any = redis.Redis.from_url(redis_url)
    raw.hset(KEYS.tenants(0), "bad:rate", "1000000")
    raw.hset(key, "vt:bad" if field == "vt" else f"bad:{field}", value)
    for tenant in ("bad", "good"):
        queue.submit(tenant, 2)
    queue.claim()
    queue.serve(2)
    assert sorted(queue.served) == ["bad", "bad", "good", "good"]
    raw.close()


def test_places_in_line_that_are_no_numbers_start_anew(redis_url: str) -> None:
    queue = Queue(redis_url)
    raw: Any = redis.Redis.from_url(redis_url)
    for value in ("nan", "inf", "x"):
        raw.hset(KEYS.wfq(0, 1), mapping={"vmin": value, "turn": value})
        raw.hset(KEYS.wfq(0, 0), "turn", value)
        queue.submit(value, 2)
        queue.claim()
        assert 0 < float(raw.hget(KEYS.wfq(0, 1), "vmin")) < 1e6
        assert 0 < float(raw.hget(KEYS.wfq(0, 0), "turn")) < 9
    assert queue.served == ["nan", "nan", "inf", "inf", "x", "x"]
    raw.close()
