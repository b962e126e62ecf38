"""Bytes from others: whatever stands in queues, streams and job hashes, scheduler and replicas go on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.support.acts import HandPool
from tests.support.worker import tokens_of

from thinkstream_client.errors import ThinkstreamError
from thinkstream_client.outcome import JobFailure, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.packing import pack, unpack
from thinkstream_client.protocol.wire_request import decode_request, encode_request
from thinkstream_client.records import Request
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.loop import Scheduler
from thinkstream_scheduler.redis_queue import RedisQueue

if TYPE_CHECKING:
    from tests.support.world import World

FUZZ = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.sampled_from(
    ["", "0", "-1", "nan", "inf", "-inf", "1e308", "1e999", "1.5", "many", "18446744073709551616"]
)
NAMES = st.one_of(
    st.sampled_from(["", ":", "a:b", "..", "x" * 129, "ä", "\n", "{1}", "*", "a b"]),
    st.text(min_size=1, max_size=9),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
GOOD = encode_request(Request(prompt="a prompt"))


RECORD_FIELDS = st.sampled_from(
    ["version", "prompt", "messages", "token_ids", "sampling", "grain", "tags", "new"]
)


def _cut(num_bytes: int) -> bytes:
    return GOOD[:num_bytes]


def _changed(fields: dict[str, Any]) -> bytes:
    """A request with some of its fields replaced."""
    return pack({**unpack(GOOD, 1000), **fields})


PAYLOADS = st.one_of(
    st.binary(max_size=64),
    VALUES.map(pack),
    st.integers(0, len(GOOD)).map(_cut),
    st.dictionaries(RECORD_FIELDS, VALUES, min_size=1, max_size=2).map(_changed),
    st.sampled_from(
        [
            b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\x91" * 2000 + b"\x90",  # nested
            b"\xc7\x04\x05abcd",  # an extension
            b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
            b"\x82\xa1a\x01\xa1a\x02",  # the same name twice
            b"\xa2\xff\xfe",  # text that is none
        ]
    ),
)
FIELDS = [
    *(
        "status",
        "grain",
        "cost",
        "entry",
        "mk",
        "attempts",
        "owner",
        "deadline",
        "priority",
        "suspect",
        "claim_n",
    ),
    *("claims", "submitted", "ttl", "bytes", "tags", "charged", "batch", "prompt_cost"),
]
ENTRY = st.dictionaries(st.binary(max_size=9), st.binary(max_size=20), min_size=1, max_size=3)


class Service:
    """A scheduler and a replica, turned by hand."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.worker = world.worker(slots=64)
        self._queue = RedisQueue(world.settings)
        config = SchedulerConfig(redis=world.settings, num_replicas=0)
        self._scheduler = Scheduler(config, self._queue, HandPool(self.worker), lambda: self._now_s)
        self._now_s = 0.0

    def turn(self, num_turns: int = 1) -> None:
        """Every turn sweeps, as if some seconds had passed."""
        for _ in range(num_turns):
            self._now_s += 10
            self._scheduler.turn()
            self.worker.publisher.beat_soon()
            self.worker.turn(3)

    def serves(self) -> None:
        """Asserts that a job of somebody who does no wrong is done."""
        ref = self._world.submit("good", num_tokens=3, tenant="good")
        self.turn(4)
        assert self._world.status(ref) is JobStatus.DONE
        call = functions.read_results(self._world.keys, {ref: 0}, block_ms=None, count=None)
        found = [one for one in self._world.run(call)[ref] if isinstance(one, wire.Entry)]
        assert tuple(token for one in found for token in one.token_ids) == tokens_of("good", 3)

    def close(self) -> None:
        self._queue.close()


def again(world: World) -> Service:
    world.clear()
    return Service(world)


@given(payload=PAYLOADS)
@settings(FUZZ, max_examples=150)
def test_bytes_that_are_no_request_are_refused_in_our_words(payload: bytes) -> None:
    with contextlib.suppress(ThinkstreamError):
        decode_request(payload)


@given(
    entry_id=st.sampled_from([b"0-0", b"1-0", b"3-1", wire.SEAL_ID, b"18446744073709551615-1"]), data=PAYLOADS
)
@settings(FUZZ, max_examples=150)
def test_any_entry_of_a_stream_can_be_read(entry_id: bytes, data: bytes) -> None:
    for name in (b"t", b"m", b"f", b"\xff"):
        assert wire.parse_stream_entry(entry_id, [name, data]) is not None


@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=8), entries=st.lists(ENTRY, max_size=4))
@settings(FUZZ, max_examples=15)
def test_payloads_and_queue_entries(
    world: World, payloads: list[bytes], entries: list[dict[bytes, bytes]]
) -> None:
    service = again(world)
    for number, payload in enumerate(payloads):
        ref = world.submit(f"job-{number}")
        world.raw.hset(world.keys.job(ref), "payload", payload)
    for entry in entries:
        world.raw.xadd(world.keys.queue(0, 1, "a"), entry)
        world.raw.xadd(world.keys.queue(0, 0, "nobody"), entry)
    service.turn(2)
    service.serves()
    assert all(world.status(ref) is not JobStatus.QUEUED for ref in world.refs)
    world.check()
    service.close()


@given(
    names=st.lists(NAMES, min_size=2, max_size=2),
    numbers=st.lists(NUMBERS, min_size=4, max_size=4),
    payload=PAYLOADS,
)
@settings(FUZZ, max_examples=50)
def test_submissions_past_the_client(
    world: World, names: list[str], numbers: list[str], payload: bytes
) -> None:
    """A client of another make calls ``submit`` with whatever it likes."""
    service = again(world)
    grain, cost, priority, ttl = numbers
    sound = ("1", "9:1", "1", "", "60000", "")
    for place, number in enumerate((grain, f"{cost}:{cost}", priority, ttl, ttl, names[0])):
        for tenant, job_id in (names, ("a", f"j{place}")):
            numbers_given = (*sound[:place], number, *sound[place + 1 :])
            reply = world.raw.fcall(
                "ts1_submit", 1, world.keys.prefix(0), tenant, job_id, "d", payload, *numbers_given
            )
            assert reply[0] in (b"OK", b"INVALID", b"EXISTS", b"DEADLINE")
    service.turn(2)
    service.serves()
    service.close()


def write(world: World, key: str, kind: str, text: str | bytes) -> None:
    """Puts something of a kind in the place of a key."""
    world.raw.delete(key)
    match kind:
        case "string":
            world.raw.set(key, text)
        case "list":
            world.raw.rpush(key, text)
        case "set":
            world.raw.sadd(key, text)
        case "hash":
            world.raw.hset(key, text or "field", text)
        case "zset":
            world.raw.zadd(key, {text: 1, "a:b:c": float("inf"), "\n": float("-inf")})
        case _:
            world.raw.xadd(key, {text: text}, id=text if text == wire.SEAL_ID else "*")


@given(
    places=st.lists(st.integers(0, 1000), min_size=1, max_size=3),
    kind=st.sampled_from(["string", "list", "set", "hash", "zset", "stream"]),
    text=NUMBERS | NAMES | st.just(wire.SEAL_ID),
)
@settings(FUZZ, max_examples=60)
def test_keys_of_any_type(world: World, places: list[int], kind: str, text: str | bytes) -> None:
    """All that is there while jobs wait and run, and all that may be, written over."""
    service = again(world)
    for name in ("first", "second"):
        world.submit(name, num_tokens=9)
    service.turn()
    world.submit("third", tenant="b")
    found = {key.decode() for key in world.raw.scan_iter()} - {world.keys.meta}
    shared = {
        world.keys.prefix(0) + name for name in ("due", "dead", "again:1", "ended", "batches", "tenants")
    }
    keys = sorted(found | shared)
    for place in places:
        write(world, keys[place % len(keys)], kind, text)
    service.turn(3)
    service.serves()
    service.close()


LOSSES = [
    "leases",
    "running",
    "due",
    "again:1",
    "ready:1",
    "wfq:0",
    "wfq:1",
    "usage",
    "tenants",
    "ended",
    "in:1:a",
]


@pytest.mark.parametrize("kind", ["string", "nothing"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_key_that_is_lost_ends_no_job(world: World, name: str, kind: str) -> None:
    """Jobs in every state: each has all its tokens in the end, whatever place of theirs is written over."""
    service = Service(world)
    for number in range(10):
        world.submit(f"running-{number}", num_tokens=20)
    service.turn()
    other = world.worker(slots=4)
    for number in range(10):
        world.submit(f"queued-{number}")
    claimed = world.claim(other.session.id, 4)
    for one in claimed[:2]:
        other.session.fail(one.ref, JobFailure(code="StepFailed", message=""), retry=True)
    other.session.close(one.ref for one in claimed[2:])
    statuses = {world.status(ref) for ref in world.refs}
    assert statuses == {JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.WAITING}
    world.raw.delete(world.keys.prefix(0) + name)
    if kind == "string":
        world.raw.set(world.keys.prefix(0) + name, "text")
    service.worker.turn(2)  # which meets it before any sweep
    service.turn(6)
    world.make_due("retry")
    service.turn(9)
    assert {world.status(ref) for ref in world.refs} == {JobStatus.DONE}
    assert all(world.token_ids(ref) == tokens_of(ref.job_id, n) for ref, n in world.refs.items())
    service.serves()
    service.close()


@given(
    name=st.sampled_from(["wfq:0", "wfq:1", "usage", "tenants", "session", "own"]),
    field=st.sampled_from(
        [
            "cursor",
            "scanned",
            "leases",
            "retrying",
            "vmin",
            "turn",
            "vt:good",
            "good:rate",
            "good:jobs",
            "slots",
        ]
    )
    | NAMES,
    value=NUMBERS | NAMES,
)
@settings(FUZZ, max_examples=60)
def test_fields_of_any_hash(world: World, name: str, field: str, value: str) -> None:
    service = again(world)
    world.submit("first", num_tokens=9)
    service.turn()
    suffix = f":{service.worker.session.id}" if name in ("session", "own") else ""
    world.raw.hset(world.keys.prefix(0) + name + suffix, field, value)
    service.turn(3)
    if field not in ("good:jobs", "good:rate"):
        service.serves()
    service.close()


@given(field=st.sampled_from(FIELDS), value=NUMBERS | NAMES)
@settings(FUZZ, max_examples=60)
def test_fields_of_a_job(world: World, field: str, value: str) -> None:
    service = again(world)
    waiting, running = world.submit("waiting"), world.submit("running", tenant="b")
    world.raw.hset(world.keys.job(waiting), field, value)
    service.worker.assign(world.claim(service.worker.session.id, 1))
    world.raw.hset(world.keys.job(running), field, value)
    service.turn(2)
    service.serves()
    service.close()
