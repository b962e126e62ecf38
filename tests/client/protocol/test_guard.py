"""Keys and fields that others wrote over: the calls of everybody else go on, on both servers.

The fuzzing beside it is in ``tests/delivery``; here each way is walked once, and by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.partition import FAILURE, KEYS, OK, Partition, finish, step, sweep

from thinkstream_client.errors import QueueFull
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.records import JobRef, Request, SessionId

DAY_MS = 86_400_000
DEAD = SessionId("dead.1")
SHARED = [
    *("dead", "events", "leases", "running", "due", "ended", "batches", "tenants", "usage"),
    *(f"{name}:{priority}" for name in ("again", "ready", "wfq") for priority in range(3)),
]
OTHERS = [
    *("own:dead.1", "session:dead.1", "in:1:a", "jobs:a", "tag:a:t", "pace:a"),
    *("batch:a:b", "left:a:b", "over:a:b", "job:a:old", "out:a:old"),
]
RUBBISH = ["nan", "inf", "-1", "1.5", "many", "", "9" * 30]


def letters(partition: Partition) -> list[tuple[str, str]]:
    found = partition.run(functions.dead_letters(KEYS, 0))
    return [(one.ref.job_id, one.reason) for one in found][::-1]


def serves_others(partition: Partition) -> None:
    """A job of another tenant goes its way, with every call that there is."""
    ref = partition.submit("new", tenant="good")
    session = partition.hello()
    partition.run(functions.beat(KEYS, 0, session, "n"))
    claimed = {one.ref: one for one in partition.claim(session)}[ref]
    assert partition.run(step(session, "n", claimed)) == [OK]
    assert partition.run(finish(session, "n", claimed)) == [OK]
    for read in (functions.backlog, functions.sessions, functions.tenants):
        partition.run(read(KEYS, 0))
    partition.run(functions.reap(KEYS, 0))
    sweep(partition)
    assert partition.status(ref) is JobStatus.DONE


def some_life(partition: Partition) -> None:
    """Jobs in every state, of a tenant with caps, in a batch; one session has died."""
    partition.run(functions.tenant_set(KEYS, 0, "a", max_jobs=99, max_tokens_per_s=10**9))
    request = Request(prompt="hi", tags=("t",))
    for job_id in ("old", "late", "wait", "more"):
        call = functions.submit(KEYS, JobRef("a", job_id), request, deadline_ms=60_000, batch="b")
        partition.run(call)
    partition.hello("dead")
    partition.claim(DEAD, 3)
    partition.run(functions.fail(KEYS, 0, DEAD, "n", JobRef("a", "wait"), failure=FAILURE, retry=True))
    partition.raw.zadd(KEYS.due(0), {"retry:a:wait": 1})
    for job_id in ("late", "more"):
        partition.raw.zadd(KEYS.due(0), {f"deadline:a:{job_id}": 1})
        partition.raw.hset(KEYS.job(JobRef("a", job_id)), "deadline", 1)
    partition.raw.zadd(KEYS.ended(0), {"a:gone:t": 1})
    partition.raw.zadd(KEYS.leases(0), {str(DEAD): 1})


CALLS: dict[str, Callable[[Partition], Any]] = {
    "sweep": sweep,
    "reap": lambda partition: partition.run(functions.reap(KEYS, 0)),
    "claim": lambda partition: partition.claim(partition.hello()),
    "submit": lambda partition: partition.submit("first", tenant="good"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [*SHARED, *OTHERS])
def test_a_key_of_another_type_stops_nobody(partition: Partition, name: str, call: str) -> None:
    some_life(partition)
    key = KEYS.prefix(0) + name
    partition.raw.set(key, "text")
    CALLS[call](partition)
    for _ in range(2):
        serves_others(partition)
        partition.raw.delete(KEYS.job(JobRef("good", "new")))
    if name in SHARED:
        assert partition.raw.get(f"{key}:broken") == b"text"
        assert DAY_MS - 60_000 < partition.raw.pttl(f"{key}:broken") <= DAY_MS
        assert ("", f"key set aside: {name}") in letters(partition) or name == "dead"


SESSION = SessionId("w.1")
SESSION_CALLS: dict[str, tuple[Callable[[functions.Claimed], Any], Any]] = {
    "beat": (lambda claimed: functions.beat(KEYS, 0, SESSION, "n"), {JobRef("a", "j"): 1}),
    "step": (lambda claimed: step(SESSION, "n", claimed, 1), [OK]),
    "finish": (lambda claimed: finish(SESSION, "n", claimed), [OK]),
    "fail": (
        lambda claimed: functions.fail(KEYS, 0, SESSION, "n", claimed.ref, failure=FAILURE, retry=True),
        OK,
    ),
    "release": (lambda claimed: functions.release(KEYS, 0, SESSION, "n", [claimed.ref]), 1),
    "bye": (lambda claimed: functions.bye(KEYS, 0, SESSION, "n"), None),
}


@pytest.mark.parametrize("call", SESSION_CALLS)
@pytest.mark.parametrize("name", SHARED)
def test_a_session_works_on_beside_a_key_of_another_type(partition: Partition, name: str, call: str) -> None:
    _, claimed = partition.job()
    partition.raw.set(KEYS.prefix(0) + name, "text")
    make, reply = SESSION_CALLS[call]
    assert partition.run(make(claimed)) == reply
    assert name != "leases" or call not in ("beat", "step") or partition.raw.zcard(KEYS.leases(0)) == 1


def test_the_first_key_set_aside_stays(partition: Partition) -> None:
    """It may hold what was ours; those behind it hold what others wrote since."""
    key = KEYS.leases(0)
    for text in ("first", "second", "third"):
        partition.raw.delete(key)
        partition.raw.set(key, text)
        sweep(partition)
    assert partition.raw.get(f"{key}:broken") == b"first"
    assert not partition.raw.exists(key)
    assert letters(partition) == [("", "key set aside: leases"), *[("", "key dropped: leases")] * 2]


@pytest.mark.parametrize("name", SHARED)
def test_sweep_sets_aside_for_those_who_may_not(partition: Partition, name: str) -> None:
    key = KEYS.prefix(0) + name
    partition.raw.set(key, "text")
    sweep(partition)
    assert partition.raw.type(key) != b"string"


@pytest.mark.parametrize("name", [*SHARED, *OTHERS])
def test_what_only_reads_finds_nothing_in_a_key_of_another_type(partition: Partition, name: str) -> None:
    some_life(partition)
    partition.raw.set(KEYS.prefix(0) + name, "text")
    for read in (functions.backlog, functions.sessions, functions.tenants):
        partition.run(read(KEYS, 0))
    for tag in (None, "t"):
        partition.run(functions.list_jobs(KEYS, 0, "a", tag=tag))
    assert partition.raw.get(KEYS.prefix(0) + name) == b"text"


@pytest.mark.parametrize("call", CALLS)
def test_events_that_take_no_more_are_set_aside(partition: Partition, call: str) -> None:
    some_life(partition)
    for key in (KEYS.events(0), KEYS.dead(0)):
        partition.raw.delete(key)
        partition.raw.xadd(key, {"kind": "x", "session": b"\xff"}, id=wire.SEAL_ID)
    partition.run(functions.read_events(KEYS, 0, "0"))
    CALLS[call](partition)
    serves_others(partition)
    kinds = [event.kind for event in partition.run(functions.read_events(KEYS, 0, "0"))]
    assert "finish" in kinds


def test_sweep_finds_events_that_take_no_more(partition: Partition) -> None:
    partition.raw.xadd(KEYS.events(0), {"kind": "x"}, id=wire.SEAL_ID)
    sweep(partition)
    assert not partition.raw.exists(KEYS.events(0))


@pytest.mark.parametrize("value", RUBBISH)
@pytest.mark.parametrize(
    "field", ["cursor", "scanned", "retrying", "leases", "due", "vmin", "turn", "vt:a", "vt:x"]
)
def test_a_counter_or_place_that_is_none(partition: Partition, field: str, value: str) -> None:
    some_life(partition)
    for priority in range(3):
        partition.raw.hset(KEYS.wfq(0, priority), field, value)
    assert [sweep(partition).retried for _ in range(2)] == [1, 0]
    assert field != "retrying" or not partition.raw.hexists(KEYS.wfq(0, 0), field)
    serves_others(partition)
    left = partition.raw.hget(KEYS.wfq(0, 1), field)
    assert field in ("retrying", "scanned", "leases", "due", "turn", "vmin") or left != value.encode()


@pytest.mark.parametrize("value", RUBBISH)
@pytest.mark.parametrize("field", ["cursor", "failed", "expired", "since"])
def test_a_batch_that_is_none(partition: Partition, field: str, value: str) -> None:
    some_life(partition)
    partition.raw.hset(KEYS.batch(0, "a", "b"), field, value)
    partition.raw.zadd(KEYS.batches(0), {"x": 0, "a:b:c": 0})
    partition.raw.sadd(KEYS.prefix(0) + "left:x", "y")
    partition.raw.delete(KEYS.job(JobRef("a", "more")))
    sweep(partition)
    serves_others(partition)
    assert partition.raw.smembers(KEYS.batch_left(0, "a", "b")) == {b"old", b"wait"}
    assert partition.raw.zrange(KEYS.batches(0), 0, -1) == [b"a:b"]


@pytest.mark.parametrize("value", RUBBISH)
def test_a_batchs_counts_that_are_none(partition: Partition, value: str) -> None:
    partition.raw.hset(KEYS.batch(0, "a", "b"), mapping={"closed": "1", "expired": value})
    partition.run(functions.batch_close(KEYS, 0, "a", "b"))
    end = partition.run(functions.read_batch_end(KEYS, 0, "a", "b"))
    assert end is not None and (end.num_jobs, end.ended_ms > 0) == (0, True)


def test_a_jobs_batch_that_is_no_name(partition: Partition) -> None:
    ref = partition.submit("j")
    partition.raw.hset(KEYS.job(ref), "batch", "a:b")
    partition.raw.sadd(KEYS.prefix(0) + "left:a:a:b", "j")
    partition.raw.hset(KEYS.prefix(0) + "batch:a:a:b", "closed", "1")
    assert partition.run(functions.cancel(KEYS, ref)) is JobStatus.CANCELLED


@pytest.mark.parametrize("value", RUBBISH)
def test_a_count_of_deaths_that_is_none(partition: Partition, value: str) -> None:
    session, claimed = partition.job()
    partition.raw.hset(KEYS.job(claimed.ref), mapping={"unnamed": value, "claim_n": 1})
    partition.reap(session)
    assert partition.status(claimed.ref) is JobStatus.QUEUED


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "x"])
@pytest.mark.parametrize(("cap", "counter"), [("jobs", "queued"), ("bytes", "bytes"), ("running", "running")])
def test_caps_that_are_no_numbers_hold_nobody_up(
    partition: Partition, cap: str, counter: str, value: str
) -> None:
    partition.raw.hset(KEYS.tenants(0), f"a:{cap}", value)
    partition.submit("first")
    partition.raw.hset(KEYS.tenants(0), f"a:{cap}", "1000")
    partition.raw.hset(KEYS.usage(0), f"a:{counter}", value)
    partition.submit("second")
    assert len(partition.claim(partition.hello())) == 2


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-5", "x"])
@pytest.mark.parametrize("fields", [["last"], ["every_ms"], ["last", "every_ms"]], ids="-".join)
def test_a_pace_that_is_none(partition: Partition, fields: list[str], value: str) -> None:
    partition.run(functions.tenant_set(KEYS, 0, "a", max_bytes=100))
    session, claimed = partition.job()
    partition.submit("second")
    partition.raw.hset(
        KEYS.pace(0, "a"), mapping={"last": 1, "every_ms": 500, **dict.fromkeys(fields, value)}
    )
    with pytest.raises(QueueFull) as refused:
        partition.run(functions.submit(KEYS, JobRef("a", "x"), Request(prompt="x" * 99)))
    assert 100 <= refused.value.retry_ms <= 60_000
    partition.run(finish(session, "n", claimed))
    if "every_ms" not in fields:
        assert 0 <= float(partition.raw.hget(KEYS.pace(0, "a"), "every_ms") or 0) < 1e15
    (second,) = partition.claim(session)
    partition.run(finish(session, "n", second, 0))
    found = partition.raw.hmget(KEYS.pace(0, "a"), "every_ms", "last")
    assert all(0 <= float(one) < 1e15 for one in found)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x"])
@pytest.mark.parametrize("field", ["level", "level_ms"])
def test_a_level_that_is_none(partition: Partition, field: str, value: str) -> None:
    partition.run(functions.tenant_set(KEYS, 0, "a", max_tokens_per_s=100_000))
    partition.raw.hset(KEYS.usage(0), mapping={"a:level": 0, "a:level_ms": 1, f"a:{field}": value})
    partition.submit("j")
    assert len(partition.claim(partition.hello())) == 1
    assert abs(float(partition.raw.hget(KEYS.usage(0), "a:level"))) < 1e9


def test_settings_and_counters_that_are_no_numbers_are_shown_as_none(partition: Partition) -> None:
    for number, value in enumerate((b"nan", b"inf", b"-3", b"\xff", b"")):
        fields = ("weight", "jobs", "bytes", "running", "rate")
        partition.raw.hset(KEYS.tenants(0), mapping={f"t{number}:{field}": value for field in fields})
        partition.raw.hset(KEYS.usage(0), f"t{number}:queued", value)
    found = partition.run(functions.tenants(KEYS, 0))
    assert {(one.weight, one.max_jobs, one.num_queued) for one in found} == {(1.0, 0, 0)}
    partition.raw.xadd(KEYS.dead(0), {"attempts": "many"})
    assert [one.attempts for one in partition.run(functions.dead_letters(KEYS, 0))] == [0]
