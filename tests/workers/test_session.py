"""The session against a real server, over one partition and over several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from thinkstream_client.errors import Fenced
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import StepReply, StepRow
from thinkstream_client.protocol.wire import chain_crc, encode_entry, initial_crc
from thinkstream_client.records import JobRef, Request
from thinkstream_workers.orders import JobKey
from thinkstream_workers.session import Session

if TYPE_CHECKING:
    from tests.workers.conftest import Service


@pytest.fixture
def session(service: Service) -> Session:
    return Session(service.config("r", slots=4, lease_ms=1_234), service.connection, {"host": "here"})


def test_redis_learns_of_it_when_it_opens(service: Service, session: Session) -> None:
    assert not session.is_open
    with pytest.raises(Fenced):
        session.beat()
    session.open()
    (known,) = service.connection.run(functions.sessions(service.keys, 0))
    assert (known.session, known.replica, known.slots) == (session.id, "r", 4)
    assert known.info == {"host": "here"}
    assert 0 < known.lease_left_ms <= 1_234


def test_each_incarnation_has_a_name_of_its_own(service: Service, session: Session) -> None:
    session.open()
    first = session.id
    service.submit("job")
    service.claim(first)
    session.replace()
    assert session.id != first
    assert session.id.startswith("r.")
    session.open()
    assert session.beat() == set(), "a new session owns nothing of the old one's"


def test_each_beat_tells_the_load(service: Service) -> None:
    tokens = iter(("3", "5"))
    session = Session(
        service.config(), service.connection, {"host": "here"}, lambda: {"tokens": next(tokens)}
    )
    session.open()
    for told in ("3", "5"):
        session.beat()
        (known,) = service.connection.run(functions.sessions(service.keys, 0))
        assert known.info == {"host": "here", "tokens": told}


def test_a_beat_tells_what_is_owned(service: Service, session: Session) -> None:
    session.open()
    ref = service.submit("job")
    service.claim(session.id)
    assert session.beat() == {JobKey(ref, 1)}


def test_a_draining_session_is_given_nothing(service: Service, session: Session) -> None:
    session.open()
    service.submit("job")
    session.drain()
    session.beat()
    assert service.claim(session.id) == []


def test_the_name_of_a_suspect_stays_through_beats(service: Service, session: Session) -> None:
    session.open()
    ref = service.submit("job")
    service.claim(session.id)
    session.announce(ref)
    session.beat()
    for attempts in (1, 2):
        service.connection.run(functions.reap(service.keys, 0, session.id))
        assert service.info(ref).attempts == attempts, "the death is laid at the suspect's door"
        session.replace()
        session.open()
        service.claim(session.id)
        session.announce(ref)
    session.announce(None)
    service.connection.run(functions.reap(service.keys, 0, session.id))
    assert service.info(ref).attempts == 2, "nobody was named: nothing is counted"


def test_close_gives_back_and_ends(service: Service, session: Session) -> None:
    session.open()
    ref = service.submit("job")
    service.claim(session.id)
    session.close([ref])
    assert service.info(ref).attempts == 0
    assert service.connection.run(functions.sessions(service.keys, 0)) == []
    with pytest.raises(Fenced):
        session.beat()


@pytest.fixture
def spread(service: Service) -> Iterator[Service]:
    """The same server with four partitions."""
    service.settings = replace(service.settings, num_partitions=4)
    service.keys = service.settings.keys
    service.connection.close()
    service.connection = Connection(service.settings)
    yield service


def test_jobs_of_several_partitions_go_out_as_one_batch(spread: Service) -> None:
    session = Session(spread.config(), spread.connection, {})
    session.open()
    refs = [spread.submit_request(f"job-{i}", Request(prompt="x")) for i in range(8)]
    assert len({spread.keys.partition_of(ref) for ref in refs}) > 1
    for partition in spread.keys.partitions:
        spread.connection.run(functions.claim(spread.keys, partition, session.id, 8))
    assert session.beat() == {JobKey(ref, 1) for ref in refs}
    rows = [StepRow(ref, 1, _entry(ref), 1, 1) for ref in refs]
    rows[3] = rows[3]._replace(expected_len=9)
    replies = session.step(rows)
    assert [reply is StepReply.OK for reply in replies] == [i != 3 for i in range(8)]
    assert replies[3] is StepReply.CAS
    session.announce(refs[0])
    session.close(refs)
    assert {spread.info(ref).owner for ref in refs} == {None}


def _entry(ref: JobRef) -> bytes:
    return encode_entry([7], chain_crc(initial_crc(ref.job_id), [7]), "")
