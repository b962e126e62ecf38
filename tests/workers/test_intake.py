"""Intake against a real server: what becomes of good, bad and resumed jobs before the engine sees them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis

from thinkstream_client.outcome import FinishReason
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.functions import Claimed, StepRow
from thinkstream_client.protocol.wire import chain_crc, encode_entry, initial_crc
from thinkstream_client.protocol.wire_request import encode_request
from thinkstream_client.records import JobRef, Message, Request, SamplingParams
from thinkstream_model.generation import GenerationDefaults
from thinkstream_workers.intake import Intake
from thinkstream_workers.job_table import JobTable
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, SequenceEnd, Submit, TokenOut
from thinkstream_workers.resolve import Limits
from thinkstream_workers.session import Session

if TYPE_CHECKING:
    from tests.workers.conftest import Letters, Service

    WaitUntil = Callable[..., None]

EOS = 0


class Door:
    """An intake in its thread, with the mailboxes behind it."""

    def __init__(self, service: Service, letters: Letters) -> None:
        self._service = service
        self.session = Session(service.config(), service.connection, {})
        self.session.open()
        self.table, self.inbox, self.outbox = JobTable(), Inbox(), Outbox()
        self.intake = Intake(
            self.session,
            text=letters,
            defaults=GenerationDefaults(temperature=0.5, eos_token_ids=(EOS,)),
            limits=Limits(max_context=100, num_ids=128),
            table=self.table,
            inbox=self.inbox,
            outbox=self.outbox,
        )
        self.thread = threading.Thread(target=self.intake.run)
        self.thread.start()

    def claim(self) -> Claimed:
        (claimed,) = self._service.claim(self.session.id)
        return claimed

    def take(self) -> None:
        claimed = self.claim()
        self.intake.adopt(JobKey(claimed.ref, claimed.mk), claimed)

    def order(self) -> Submit:
        for _ in range(50):
            for order in self.inbox.drain(block=True):
                assert isinstance(order, Submit)
                return order
        raise AssertionError("no order came")

    def end(self) -> SequenceEnd:
        output = self.outbox.get(5.0)
        assert output is not None
        (end,) = output.ends
        return end

    def publish(self, ref: JobRef, letters: str) -> None:
        ids = list(letters.encode())
        crc = initial_crc(ref.job_id)
        for place, token_id in enumerate(ids, 1):
            crc = chain_crc(crc, [token_id])
            entry = encode_entry([token_id], crc, chr(token_id))
            self.session.step([StepRow(ref, expected_len=place, entry=entry, mk=1, grain=1)])


@pytest.fixture
def door(service: Service, letters: Letters) -> Iterator[Door]:
    door = Door(service, letters)
    yield door
    door.intake.stop()
    door.thread.join()


def test_a_job_becomes_an_order(service: Service, door: Door, wait_until: WaitUntil) -> None:
    ref = service.submit_request("job", Request(prompt="hello", sampling=SamplingParams(top_k=3)))
    door.take()
    order = door.order()
    assert order.prompt_ids == tuple(b"hello")
    assert order.published_ids == ()
    assert (order.sampling.temperature, order.sampling.top_k) == (0.5, 3)
    assert order.sampling.max_tokens == 95
    assert order.key in door.table
    publication = door.table.get(order.key)
    assert publication is not None
    assert publication.expected_len == 1
    wait_until(lambda: service.info(ref).note is not None)


def test_a_chat_is_rendered_and_ids_are_taken_as_they_are(service: Service, door: Door) -> None:
    service.submit_request("chat", Request(messages=(Message("user", "hi"),)))
    door.take()
    assert door.order().prompt_ids == tuple(b"user:hi")
    service.submit_request("ids", Request(token_ids=(5, 6, 7)))
    door.take()
    assert door.order().prompt_ids == (5, 6, 7)


@pytest.mark.parametrize(
    ("request_", "code", "data"),
    [
        (Request(token_ids=(1,) * 100), "PromptTooLong", {"num_tokens": 100, "limit": 99}),
        (Request(token_ids=(1, 128)), "InvalidRequest", {"field": "token_ids"}),
        (
            Request(prompt="x", sampling=SamplingParams(logit_bias={500: 1.0})),
            "InvalidRequest",
            {"field": "sampling.logit_bias"},
        ),
        (Request(messages=(Message("user", "broken"),)), "JobFailed", {}),
    ],
)
def test_what_cannot_be_done_ends_with_its_reason(
    service: Service, door: Door, request_: Request, code: str, data: dict[str, Any]
) -> None:
    service.submit_request("bad", request_)
    service.submit_request("good", Request(prompt="next"))
    for claimed in service.claim(door.session.id):
        door.intake.adopt(JobKey(claimed.ref, claimed.mk), claimed)
    end = door.end()
    assert (end.key.ref.job_id, end.reason) == ("bad", FinishReason.FAILED)
    assert end.error is not None
    assert end.error.code == code
    assert {name: end.error.data[name] for name in data} == data
    assert door.order().key.ref.job_id == "good"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\xc1 not msgpack", "RecordInvalid"),
        (b"x" * 2_000_000, "RecordInvalid"),
        (b"\x82\xa7version\x63\xa6prompt\xa1x", "RecordInvalid"),
        (b"\x83\xa7version\x01\xa6prompt\xa1x\xa8surprise\x01", "InvalidRequest"),
        (b"\x91" * 40 + b"\x01", "RecordInvalid"),
    ],
)
def test_raw_bytes_in_the_queue_end_their_job_alone(
    service: Service, door: Door, redis_url: str, payload: bytes, code: str
) -> None:
    ref = service.submit("bad")
    with redis.Redis.from_url(redis_url) as client:
        client.hset(service.keys.job(ref), "payload", payload)
    door.take()
    end = door.end()
    assert end.error is not None
    assert (end.reason, end.error.code) == (FinishReason.FAILED, code)


def test_the_grain_is_the_queues_and_not_the_payloads(service: Service, door: Door, redis_url: str) -> None:
    ref = service.submit("job", grain=2)
    with redis.Redis.from_url(redis_url) as client:
        client.hset(service.keys.job(ref), "payload", encode_request(Request(prompt="x", grain=1)))
    door.take()
    publication = door.table.get(door.order().key)
    assert publication is not None
    publication.push(TokenOut(publication.key, 1, 65))
    assert not publication.has_entry
    publication.push(TokenOut(publication.key, 2, 65))
    assert publication.has_entry


@pytest.mark.parametrize("by_beat", [False, True])
def test_a_resumed_job_brings_its_tokens_along(service: Service, door: Door, by_beat: bool) -> None:
    ref = service.submit("job", max_tokens=20)
    door.claim()
    door.publish(ref, "ABC")
    service.connection.run(functions.reap(service.keys, 0, door.session.id))
    door.session.replace()
    door.session.open()
    claimed = door.claim()
    door.intake.adopt(JobKey(ref, 2), None if by_beat else claimed)
    order = door.order()
    assert (order.key, order.published_ids) == (JobKey(ref, 2), tuple(b"ABC"))
    assert order.sampling.max_tokens == 20
    publication = door.table.get(order.key)
    assert publication is not None
    assert (publication.num_published, publication.expected_len) == (3, 5)


@pytest.mark.parametrize(
    ("published", "sampling", "reason"),
    [
        ("AB\0", {}, FinishReason.STOP),
        ("ABC", {"max_tokens": 3}, FinishReason.LENGTH),
        ("ABC", {"stop": ("BC",)}, FinishReason.STOP),
    ],
)
def test_a_job_that_lacked_only_its_seal_never_reaches_the_engine(
    service: Service, door: Door, published: str, sampling: dict[str, Any], reason: FinishReason
) -> None:
    ref = service.submit("job", **sampling)
    door.claim()
    door.publish(ref, published)
    service.connection.run(functions.reap(service.keys, 0, door.session.id))
    door.session.replace()
    door.session.open()
    door.take()
    end = door.end()
    assert (end.reason, end.error) == (reason, None)
    assert door.inbox.drain(block=False) == []


def test_a_job_is_taken_up_once(service: Service, door: Door) -> None:
    service.submit("job")
    claimed = door.claim()
    key = JobKey(claimed.ref, claimed.mk)
    for _ in range(3):
        door.intake.adopt(key, claimed)
    door.intake.adopt(key)
    assert door.order().key == key
    assert door.inbox.drain(block=True) == []


def test_a_job_that_is_gone_is_forgotten(door: Door, wait_until: WaitUntil) -> None:
    key = JobKey(JobRef("t", "nowhere"), 1)
    door.intake.adopt(key)
    wait_until(lambda: key not in door.table)
