"""A whole replica with a tiny random Thinker; the tests claim jobs for it and read their streams."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from thinkstream_client.errors import ConfigError, ServiceUnavailable
from thinkstream_client.outcome import FinishReason, JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.wire import Marker
from thinkstream_client.records import JobRef, Message, Request, SamplingParams, SessionId
from thinkstream_model.checkpoint import Checkpoint
from thinkstream_workers.batcher import Batcher
from thinkstream_workers.replica import Replica
from thinkstream_workers.session import Session

if TYPE_CHECKING:
    from tests.workers.conftest import Result, Service

    Start = Callable[..., Replica]
    WaitUntil = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(service: Service, replica: Replica, refs: list[JobRef]) -> list[Result]:
    """Has the replica do all jobs."""
    replica.assign(service.claim(replica.session))
    return [service.wait_finish(ref) for ref in refs]


def test_jobs_stream_and_end(service: Service, start: Start) -> None:
    replica = start()
    refs = [service.submit(f"job-{i}", max_tokens=6, ignore_eos=True, temperature=1.0) for i in range(5)]
    results = run(service, replica, refs)
    for result in results:
        assert len(result.ids) == 6
        assert result.finish is not None
        assert result.finish.reason is FinishReason.LENGTH
        assert result.finish.usage.prompt_tokens == len("a prompt")
        assert result.finish.usage.completion_tokens == 6
    assert len({result.ids for result in results}) > 1, "each job has a seed of its own"
    note = service.info(refs[0]).note
    assert note is not None
    assert json.loads(note)["max_tokens"] == 6


def test_a_job_is_the_same_alone_in_a_batch_and_in_grains(service: Service, start: Start) -> None:
    replica = start()
    settings: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "temperature": 1.0, "seed": 7}
    (alone,) = run(service, replica, [service.submit("alone", **settings)])
    many = [service.submit(f"job-{i}", max_tokens=30, ignore_eos=True) for i in range(6)]
    twin = service.submit("twin", grain=16, **settings)
    result = run(service, replica, [*many, twin])[-1]
    assert (result.ids, result.text) == (alone.ids, alone.text)
    assert len(result.raw) == 1 + 2 + 1


def test_a_job_resumed_elsewhere_is_bit_equal_to_the_undisturbed(
    service: Service, start: Start, wait_until: WaitUntil
) -> None:
    first = start("first")
    settings: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True, "temperature": 1.0, "seed": 3}
    (undisturbed,) = run(service, first, [service.submit("undisturbed", **settings)])
    refs = [service.submit("one", **settings), service.submit("other", grain=16, **settings)]
    first.assign(service.claim(first.session))
    wait_until(lambda: all(len(service.result(ref).ids) >= 16 for ref in refs))
    first.stop()
    assert all(service.result(ref).finish is None for ref in refs), "stopped too late to show anything"
    service.connection.run(functions.reap(service.keys, 0, first.session))
    second = start("second")
    for result in run(service, second, refs):
        assert result.ids == undisturbed.ids
        assert result.text == undisturbed.text
        assert sum(isinstance(entry, Marker) for entry in result.raw) == 2


def test_a_session_reaped_by_force_goes_on_as_a_new_one(
    service: Service, start: Start, wait_until: WaitUntil
) -> None:
    replica = start()
    settings: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 1.0, "seed": 3}
    (undisturbed,) = run(service, replica, [service.submit("undisturbed", **settings)])
    ref = service.submit("job", **settings)
    old = replica.session
    replica.assign(service.claim(old))
    wait_until(lambda: len(service.result(ref).ids) >= 3)
    service.connection.run(functions.reap(service.keys, 0, old))
    wait_until(lambda: replica.session != old)
    wait_until(lambda: _is_known(service, replica))
    (result,) = run(service, replica, [ref])
    assert (result.ids, result.text) == (undisturbed.ids, undisturbed.text)


def test_a_namespace_that_computes_otherwise_is_left_alone(service: Service, start: Start) -> None:
    service.connection.run(functions.meta_claim(service.keys, arithmetic="bfloat16 on cuda by our kernels"))
    with pytest.raises(ConfigError, match=r"this is float32 on cpu by plain torch: .* --namespace NAME"):
        start()


def test_a_model_that_the_device_has_no_room_for_is_told_so(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_weights(checkpoint: Checkpoint, **how: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 57.00 GiB\nmore that nobody reads")

    monkeypatch.setattr(Checkpoint, "load_weights", load_weights)
    with pytest.raises(ConfigError, match=r"no room for the model: Tried to allocate 57\.00 GiB$"):
        start()


def test_an_assignment_that_was_lost_is_found_by_the_beat(service: Service, start: Start) -> None:
    replica = start()
    ref = service.submit("job", max_tokens=3, ignore_eos=True)
    assert len(service.claim(replica.session)) == 1
    result = service.wait_finish(ref)
    assert len(result.ids) == 3


def test_an_assignment_that_comes_twice_changes_nothing(service: Service, start: Start) -> None:
    replica = start()
    ref = service.submit("job", max_tokens=20, ignore_eos=True)
    claimed = service.claim(replica.session)
    for _ in range(3):
        replica.assign(claimed)
    assert len(service.wait_finish(ref).ids) == 20


def test_lost_calls_and_lost_replies_change_nothing(
    service: Service, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = start()
    settings: list[dict[str, Any]] = [
        {"max_tokens": 30 + i, "ignore_eos": True, "seed": i, "grain": (1, 1, 5, 16)[i % 4]}
        for i in range(12)
    ]
    undisturbed = run(service, replica, [service.submit(f"a-{i}", **s) for i, s in enumerate(settings)])
    refs = [service.submit(f"b-{i}", **s) for i, s in enumerate(settings)]
    claimed = service.claim(replica.session)
    chance = random.Random(1)
    send = Connection.run

    def lossy_run(connection: Connection, call: Call[Any]) -> Any:
        fate = chance.random() if connection is not service.connection else 1.0
        if fate < 0.05:
            raise ServiceUnavailable("the call is lost")
        reply = send(connection, call)
        if fate < 0.15:
            raise ServiceUnavailable("the reply is lost")
        return reply

    monkeypatch.setattr(Connection, "run", lossy_run)
    replica.assign(claimed)
    for ref, expected in zip(refs, undisturbed, strict=True):
        result = service.wait_finish(ref)
        assert (result.ids, result.text) == (expected.ids, expected.text)
        assert sum(isinstance(entry, Marker) for entry in result.raw) == 1, "nothing was given up"


def test_stop_strings_end_the_text_before_them(service: Service, start: Start) -> None:
    replica = start()
    settings: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0, "seed": 11}
    (whole,) = run(service, replica, [service.submit("whole", **settings)])
    stop = whole.text[10:13]
    assert stop
    (cut,) = run(service, replica, [service.submit("cut", stop=(stop,), **settings)])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert cut.finish is not None
    assert cut.finish.reason is FinishReason.STOP


def _load(service: Service) -> tuple[int, bool]:
    """Jobs in hand, and whether all blocks are free, as the replica's last beat told."""
    (session,) = service.connection.run(functions.sessions(service.keys, 0))
    assert int(session.info["waiting"]) + int(session.info["tokens"]) >= 0
    return session.owned, session.info["free_blocks"] == session.info["num_blocks"]


def test_cancel_and_deadline_seal_at_once_and_free_the_slot(
    service: Service, start: Start, wait_until: WaitUntil
) -> None:
    replica = start(slots=2)
    cancelled = service.submit("cancelled", max_tokens=400, ignore_eos=True)
    expired = service.submit("expired", max_tokens=400, ignore_eos=True, deadline_ms=300)
    replica.assign(service.claim(replica.session))
    wait_until(lambda: len(service.result(cancelled).ids) > 0)
    service.connection.run(functions.cancel(service.keys, cancelled))
    wait_until(lambda: service.connection.run(functions.sweep(service.keys, 0)).expired == 1)
    assert service.info(cancelled).status is JobStatus.CANCELLED
    assert service.info(expired).status is JobStatus.EXPIRED
    wait_until(lambda: _load(service) == (0, True))
    (result,) = run(service, replica, [service.submit("next", max_tokens=2, ignore_eos=True)])
    assert len(result.ids) == 2


def test_bad_jobs_fail_with_their_reason_and_others_run_on(service: Service, start: Start) -> None:
    replica = start()
    long = service.submit_request("long", Request(token_ids=(1,) * 600))
    strange = service.submit_request("strange", Request(token_ids=(1, 5_000)))
    good = service.submit("good", max_tokens=3, ignore_eos=True)
    results = run(service, replica, [long, strange, good])
    errors = [result.finish.error for result in results if result.finish]
    assert errors[0] is not None
    assert (errors[0].code, dict(errors[0].data)) == ("PromptTooLong", {"num_tokens": 600, "limit": 511})
    assert errors[1] is not None
    assert errors[1].code == "InvalidRequest"
    assert errors[1].data["field"] == "token_ids"
    assert errors[2] is None


def test_a_chat_goes_through_the_template_and_the_context_ends_it(service: Service, start: Start) -> None:
    replica = start()
    request = Request(
        messages=(Message("user", "x" * 400),), sampling=SamplingParams(max_tokens=400, ignore_eos=True)
    )
    (result,) = run(service, replica, [service.submit_request("chat", request)])
    assert result.finish is not None
    assert result.finish.reason is FinishReason.LENGTH
    assert result.finish.usage.prompt_tokens > 400
    assert result.finish.usage.prompt_tokens + len(result.ids) == 512


def test_drain_gives_jobs_back_and_counts_no_attempt(
    service: Service, start: Start, wait_until: WaitUntil
) -> None:
    replica = start()
    ref = service.submit("job", max_tokens=150, ignore_eos=True)
    replica.assign(service.claim(replica.session))
    wait_until(lambda: len(service.result(ref).ids) >= 2)
    replica.drain(0.0)
    info = service.info(ref)
    assert (info.status, info.attempts, info.owner) == (JobStatus.QUEUED, 0, None)
    assert service.connection.run(functions.sessions(service.keys, 0)) == []
    successor = start("successor")
    (result,) = run(service, successor, [ref])
    assert len(result.ids) == 150


def test_drain_waits_for_jobs_in_hand_and_takes_no_more(service: Service, start: Start) -> None:
    replica = start()
    ref = service.submit("job", max_tokens=40, ignore_eos=True)
    replica.assign(service.claim(replica.session))
    replica.drain(20.0)
    result = service.result(ref)
    assert result.finish is not None
    assert len(result.ids) == 40


def test_a_dead_engine_ends_the_replica(
    service: Service, model_name: str, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[BaseException] = []
    replica = Replica(service.config(model=model_name, lease_ms=500), on_death=deaths.append)
    replica.start()
    ref = service.submit("job", max_tokens=400, ignore_eos=True)
    replica.assign(service.claim(replica.session))
    wait_until(lambda: len(service.result(ref).ids) >= 2)
    monkeypatch.setattr(Batcher, "next_batch", None)  # what the engine does not expect, in its own loop
    wait_until(lambda: len(deaths) == 1)
    wait_until(lambda: service.connection.run(functions.reap(service.keys, 0)) == 1)
    assert service.info(ref).status is JobStatus.QUEUED
    replica.stop()


def test_a_suspect_is_named_before_it_is_stepped(
    service: Service, start: Start, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = service.submit("suspect", max_tokens=5, ignore_eos=True)
    dead = SessionId("dead.1")
    service.connection.run(
        functions.hello(service.keys, 0, dead, "nonce", replica="dead", slots=1, lease_ms=9_000, info={})
    )
    assert len(service.claim(dead)) == 1
    service.connection.run(functions.reap(service.keys, 0, dead))
    assert service.info(ref).suspect
    replica = start("living")
    named: list[JobRef | None] = []
    announce = Session.announce

    def record(session: Session, ref: JobRef | None) -> None:
        named.append(ref)
        announce(session, ref)

    monkeypatch.setattr(Session, "announce", record)
    (result,) = run(service, replica, [ref])
    assert len(result.ids) == 5
    wait_until(lambda: named == [ref, None])


def test_a_namespace_serves_one_model_and_no_weights_of_another_are_read(
    service: Service, start: Start, model_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    monkeypatch.setattr(Checkpoint, "load_weights", None)
    file = tmp_path / "config.json"
    shape = json.loads(Path(model_name.removeprefix("random:")).read_text())
    file.write_text(json.dumps({**shape, "num_hidden_layers": 1}))
    config = service.config("other", model=f"random:{file}")
    with pytest.raises(ConfigError, match=f"namespace ts serves random:.*, not random:{file}: .*--namespace"):
        Replica(config, on_death=lambda error: None)


def _is_known(service: Service, replica: Replica) -> bool:
    known = service.connection.run(functions.sessions(service.keys, 0))
    return any(session.session == replica.session for session in known)
