"""For every command at every place it is sent from: it is carried out, then the connection dies.

Each role does its work once undisturbed, which counts its round trips, and then once per round trip with that
reply lost. What the result streams hold has to be the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from tests.support.acts import HandPool
from tests.support.lossy_proxy import LossyProxy
from tests.support.worker import HandWorker, text_of, tokens_of

from thinkstream_client import Client
from thinkstream_client.errors import ServiceUnavailable
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.loop import Scheduler
from thinkstream_scheduler.redis_queue import RedisQueue

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.fixture
def proxy(redis_url: str) -> Iterator[LossyProxy]:
    proxy = LossyProxy(redis_url)
    yield proxy
    proxy.close()


def every_reply(proxy: LossyProxy, world: World, act: Callable[[], None]) -> set[str]:
    """Acts undisturbed, then once per reply with that one lost; returns what was asked."""
    proxy.arm(None)
    act()
    names = list(proxy.names)
    for number in range(len(names)):
        world.clear()
        proxy.arm(number)
        act()
        assert proxy.has_lost, (number, names)
    return {part for name in names for part in name.split("+")}


def test_a_replica_loses_any_reply(world: World, proxy: LossyProxy) -> None:
    settings = RedisSettings(proxy.url)

    def act() -> None:
        world.submit("suspect", num_tokens=2)
        dead = world.worker()
        world.claim(dead.session.id)
        world.reap(dead.session.id)
        grains, fails = world.submit("grains", num_tokens=5, grain=2), world.submit("fails", num_tokens=2)
        connection = Connection(settings)
        worker = HandWorker(settings, connection, "lossy", slots=3)
        worker.failing.add("fails")
        for turn in range(12):
            jobs = world.claim(worker.session.id)
            if turn > 1:  # the first assignment is lost, a beat finds what is owned
                worker.assign(jobs)
            worker.publisher.beat_soon()
            worker.turn()
            world.check()
        world.make_due("retry")
        late = world.submit("late", num_tokens=40, grain=2)
        worker.assign(world.claim(worker.session.id))
        worker.turn(8)
        world.check()
        worker.close()
        connection.close()
        snapshot = world.check()
        assert snapshot.jobs[fails].fields[b"attempts"] in (b"0", b"1"), "one failure is counted once"
        assert snapshot.jobs[grains].num_markers == 1, "the job was given up for a lost reply"
        assert snapshot.jobs[late].status == "queued"
        assert snapshot.jobs[late].fields[b"attempts"] == b"0"
        world.bring_to_an_end()
        world.check_end()

    assert {
        "ts1_build", "ts1_hello", "ts1_beat", "ts1_step", "ts1_finish", "ts1_fail", "ts1_note", "ts1_release",
        "ts1_bye", "HMGET", "XREAD",
    } <= every_reply(proxy, world, act)  # fmt: skip


def test_a_scheduler_loses_any_reply(world: World, proxy: LossyProxy) -> None:
    def act() -> None:
        dead, alive = world.worker(slots=2), world.worker()
        refs = [world.submit(f"job-{number}", num_tokens=3) for number in range(5)]
        world.claim(dead.session.id)
        queue, pool = RedisQueue(RedisSettings(proxy.url)), HandPool(dead, alive)
        scheduler = Scheduler(SchedulerConfig(redis=world.settings, num_replicas=0), queue, pool)
        died = False
        for turn in range(6):
            try:
                scheduler.turn()
                if turn == 1:
                    queue.wait(1)
                if not died:
                    pool.dead.append(dead.session.id.partition(".")[0])
                    died = True
            except ServiceUnavailable:
                pass
            alive.publisher.beat_soon()
            alive.turn()
            world.check()
        queue.close()
        assert {world.status(ref) for ref in refs} == {JobStatus.DONE}
        alive.close()
        world.reap(dead.session.id)
        world.check_end()

    assert {
        "ts1_build", "ts1_reap", "ts1_sweep", "ts1_sessions", "ts1_backlog", "ts1_claim", "XREAD",
    } <= every_reply(proxy, world, act)  # fmt: skip


def test_a_client_loses_any_reply(
    world: World, proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("thinkstream_client.core.follow.STATUS_EVERY_S", 0.0)
    monkeypatch.setattr("thinkstream_client.core.chunk_stream._BLOCK_MS", 1)
    monkeypatch.setattr("thinkstream_client.core.effects.Backoff.lost", _lost_at_once)
    text = text_of(tokens_of("j", 3))
    world.raw.config_set("appendfsync", "always")
    world.raw.config_set("appendonly", "yes")
    request.addfinalizer(lambda: world.raw.config_set("appendonly", "no"))

    def again(what: Callable[[], object]) -> object:
        """The first connection of a client is not tried again: its caller does."""
        try:
            return what()
        except ServiceUnavailable:
            return what()

    def act() -> None:
        worker = world.worker()
        client = Client(proxy.url)
        again(client.connect)
        job = client.submit("a prompt", id="j", tenant="a", max_tokens=3, ignore_eos=True)
        doomed = client.submit("a prompt", id="doomed", tenant="a", max_tokens=900)
        many = client.submit_many(["a prompt"] * 3, tenant="a")
        worker.assign(world.claim(worker.session.id, 1))
        worker.turn(2)
        stream = job.stream()
        chunks = [next(stream)]
        worker.turn(4)
        chunks += stream
        assert "".join(chunk.text for chunk in chunks) == text
        assert job.result(confirm=True).text == text
        assert doomed.cancel() is JobStatus.CANCELLED
        assert doomed.cancel() is JobStatus.CANCELLED
        assert [one.cancel() for one in many] == [JobStatus.CANCELLED] * 3
        assert job.info().n == 3
        assert len(client.jobs(tenant="a")) == 5
        assert len(client.replicas()) == 1
        client.close()
        worker.close()
        world.check_end()

    assert {
        "INFO", "ts1_meta", "ts1_submit", "ts1_cancel", "ts1_list", "ts1_sessions", "HMGET", "HGET", "XREAD",
        "ts1_confirm", "WAITAOF",
    } <= every_reply(proxy, world, act)  # fmt: skip


def _lost_at_once(self: object, error: ServiceUnavailable) -> object:
    from thinkstream_client.core.effects import Sleep

    del self, error
    return Sleep(1)


def test_a_repeated_failure_does_not_meet_the_next_claim(
    world: World, proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply of ``fail`` is lost, the job comes back to the same session, and the engine hangs."""
    ref = world.submit("fails", num_tokens=3)
    connection = Connection(RedisSettings(proxy.url))
    worker = HandWorker(RedisSettings(proxy.url), connection, "lossy")
    worker.failing.add("fails")
    worker.beat()
    worker.assign(world.claim(worker.session.id))
    proxy.arm(1)  # the note is 0
    worker.turn()
    assert proxy.names == ["ts1_note", "ts1_fail"]
    world.make_due("retry")
    assert len(world.claim(worker.session.id)) == 1
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 40)
    worker.publisher.turn(0.0)
    snapshot = world.check()
    assert (snapshot.jobs[ref].status, snapshot.jobs[ref].fields[b"attempts"]) == ("running", b"1")
