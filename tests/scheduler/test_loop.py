from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from tests.support.scheduler_bench import KEYS, NONCE, Bench, FakePool

from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.records import JobRef, Request
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.embedded import EmbeddedServer
from thinkstream_scheduler.loop import Scheduler
from thinkstream_scheduler.redis_queue import RedisQueue


class StumblingPool(FakePool):
    """Fails once, as no pool should."""

    has_stumbled = False

    def deaths(self) -> list[str]:
        if not self.has_stumbled:
            self.has_stumbled = True
            raise ZeroDivisionError
        return super().deaths()


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    bench = Bench(redis_url)
    yield bench
    bench.connection.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


def test_jobs_go_to_the_emptiest_replica_many_in_one_call(bench: Bench) -> None:
    bench.hello("small", slots=2)
    bench.hello("large", slots=8)
    bench.submit(*(f"j{i}" for i in range(7)))
    bench.scheduler().turn()
    assert [(name, len(jobs)) for name, jobs in bench.pool.assigned] == [("large", 7)]


def test_no_replica_gets_more_than_its_slots_and_the_rest_waits(bench: Bench) -> None:
    session = bench.hello("r", slots=3)
    bench.submit(*(f"j{i}" for i in range(5)))
    scheduler = bench.scheduler()
    scheduler.turn()
    scheduler.turn()
    assert bench.pool.jobs_of("r") == ["j0", "j1", "j2"]
    bench.finish(session, bench.pool.assigned[0][1][:1])
    scheduler.turn()
    assert bench.pool.jobs_of("r") == ["j0", "j1", "j2", "j3"]
    assert bench.status("j4") is JobStatus.QUEUED


def test_a_full_claim_serves_the_tenants_in_turn(bench: Bench) -> None:
    bench.submit(*(f"a{i}" for i in range(40)), tenant="a")
    bench.submit(*(f"b{i}" for i in range(3)), tenant="b")
    bench.hello("r", slots=8)
    bench.scheduler().turn()
    served = [job.ref.tenant for _, jobs in bench.pool.assigned for job in jobs]
    assert len(served) == 8
    assert served.count("b") == 3


def test_a_death_notice_frees_the_jobs_before_the_lease_ends(bench: Bench) -> None:
    scheduler = bench.scheduler(num_replicas=1)
    scheduler.turn()
    bench.hello("replica-0")
    bench.submit("j0", "j1")
    scheduler.turn()
    assert bench.status("j0") is JobStatus.RUNNING
    bench.pool.kill("replica-0")
    scheduler.turn()
    assert bench.status("j0") is JobStatus.QUEUED
    assert bench.pool.reported == {}
    assert bench.pool.started == ["replica-0", "replica-0"]
    bench.hello("replica-0", life="2")
    scheduler.turn()
    assert bench.status("j1") is JobStatus.RUNNING
    assert bench.pool.jobs_of("replica-0") == ["j0", "j1", "j0", "j1"]


def test_a_late_death_notice_spares_the_successor_s_session(bench: Bench) -> None:
    scheduler = bench.scheduler(num_replicas=1)
    bench.hello("replica-0")
    scheduler.turn()
    bench.pool.kill("replica-0")
    successor = bench.hello("replica-0", life="2", pool=FakePool())
    scheduler.turn()
    bench.pool.reported[successor] = "replica-0"
    bench.submit("j0")
    scheduler.turn()
    sessions = bench.connection.run(functions.sessions(KEYS, 0))
    assert [info.session for info in sessions] == ["replica-0.2"]
    assert bench.status("j0") is JobStatus.RUNNING


def test_a_replica_that_dies_before_it_is_ready_waits_for_its_next_start(bench: Bench) -> None:
    scheduler = bench.scheduler(num_replicas=1)
    scheduler.turn()
    bench.pool.kill("replica-0")
    scheduler.turn()
    assert bench.pool.started == ["replica-0"]
    bench.now_s = 1.5
    scheduler.turn()
    assert bench.pool.started == ["replica-0", "replica-0"]


def test_a_lease_that_ends_gives_its_jobs_to_others(bench: Bench) -> None:
    scheduler = bench.scheduler()
    bench.hello("dying", lease_ms=50)
    bench.submit("j0")
    scheduler.turn()
    bench.hello("living")
    time.sleep(0.06)
    scheduler.turn()
    assert bench.pool.jobs_of("dying") == ["j0"]
    assert bench.pool.jobs_of("living") == ["j0"]


def test_a_second_scheduler_knows_everything_at_once(bench: Bench) -> None:
    session = bench.hello("r", slots=2)
    bench.submit("j0", "j1", "j2")
    bench.scheduler().turn()
    second_pool = FakePool(reported=bench.pool.reported)
    second = bench.scheduler(pool=second_pool)
    second.turn()
    assert second_pool.assigned == []
    bench.finish(session, bench.pool.assigned[0][1])
    second.turn()
    assert second_pool.jobs_of("r") == ["j2"]


def test_two_schedulers_at_once_give_no_job_twice(bench: Bench) -> None:
    for i in range(3):
        bench.hello(f"r{i}", slots=20)
    pools = [FakePool(reported=bench.pool.reported) for _ in range(2)]
    schedulers = [bench.scheduler(pool=pool) for pool in pools]
    threads = [threading.Thread(target=scheduler.run) for scheduler in schedulers]
    for thread in threads:
        thread.start()
    bench.submit(*(f"j{i}" for i in range(50)))

    def given() -> list[str]:
        return [job.ref.job_id for pool in pools for _, jobs in pool.assigned for job in jobs]

    wait_for(lambda: len(given()) >= 50)
    for scheduler in schedulers:
        scheduler.stop()
    for thread in threads:
        thread.join()
    assert sorted(given()) == sorted(f"j{i}" for i in range(50))


def test_what_another_service_s_replicas_do_is_not_its_business(bench: Bench) -> None:
    """Two Ray clusters on one namespace, whose replicas even have one name."""
    elsewhere = FakePool()
    theirs = bench.hello("replica-0", life="theirs", slots=8, pool=elsewhere)
    bench.hello("replica-0", life="ours", slots=1)
    bench.submit("j0", "j1", "j2")
    ours = bench.scheduler(num_replicas=1)
    ours.turn()
    assert bench.pool.jobs_of("replica-0") == ["j0"]
    bench.scheduler(pool=elsewhere).turn()
    assert elsewhere.jobs_of("replica-0") == ["j1", "j2"]
    bench.pool.kill("replica-0")
    ours.turn()
    assert bench.status("j0") is JobStatus.QUEUED
    assert [bench.status(job_id) for job_id in ("j1", "j2")] == [JobStatus.RUNNING] * 2
    assert [info.session for info in bench.connection.run(functions.sessions(KEYS, 0))] == [theirs]


def test_a_replica_that_became_a_new_session_is_given_jobs_again(bench: Bench) -> None:
    former = bench.hello("r")
    scheduler = bench.scheduler()
    scheduler.turn()
    bench.connection.run(functions.reap(KEYS, 0, former))
    del bench.pool.reported[former]
    bench.hello("r", life="2")
    bench.submit("j0")
    scheduler.turn()
    assert bench.pool.jobs_of("r") == ["j0"]


def test_a_draining_replica_gets_nothing(bench: Bench) -> None:
    session = bench.hello("r")
    bench.connection.run(functions.beat(KEYS, 0, session, NONCE, draining=True))
    bench.submit("j0")
    bench.scheduler().turn()
    assert bench.pool.assigned == []


def test_a_deadline_is_sealed_by_the_sweep(bench: Bench) -> None:
    call = functions.submit(KEYS, JobRef("a", "late"), Request(prompt="x"), deadline_ms=20)
    bench.connection.run(call)
    time.sleep(0.03)
    bench.scheduler().turn()
    assert bench.status("late") is JobStatus.EXPIRED


def test_one_turn_sweeps_as_long_as_there_is_more(bench: Bench, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as raw:
        raw.zadd(KEYS.ended(0), {f"a:old-{i}:": i for i in range(1_000)})
        bench.scheduler().turn()
        assert raw.zcard(KEYS.ended(0)) == 0


def test_rubbish_in_the_queue_stops_nothing(bench: Bench, redis_url: str) -> None:
    bench.hello("r", slots=4)
    with redis.Redis.from_url(redis_url) as raw:
        for name, rubbish in (("job", b"\xff\xfe"), ("nonsense", b"x" * 2_000_000), ("job", b"nobody")):
            raw.xadd(KEYS.queue(0, 1, "a"), {name: rubbish})
        raw.zadd(KEYS.ready(0, 1), {"a": 0})
        raw.zadd(KEYS.again(0, 1), {"no-colon": 0, "a:missing": 0})
        raw.set(KEYS.queue(0, 1, "wrong"), "not a stream")
        raw.zadd(KEYS.ready(0, 1), {"wrong": 0})
    bench.submit("j0")
    scheduler = bench.scheduler()
    scheduler.turn()
    scheduler.turn()
    assert bench.pool.jobs_of("r") == ["j0"]
    assert bench.connection.run(functions.backlog(KEYS, 0)).dead >= 3


def test_a_submitted_job_wakes_a_sleeping_scheduler(bench: Bench) -> None:
    bench.hello("r")
    config = SchedulerConfig(redis=bench.settings, num_replicas=0, wake_ms=1_000)
    scheduler = Scheduler(config, RedisQueue(bench.settings), bench.pool)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    bench.submit("j0")
    wait_for(lambda: bench.pool.jobs_of("r") == ["j0"])
    assert time.monotonic() - began < 0.5
    scheduler.stop()
    thread.join()


def test_it_outlives_an_outage_of_redis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = EmbeddedServer(tmp_path)
    server.start()
    bench = Bench(server.url)
    bench.hello("r", slots=2)
    scheduler = bench.scheduler()
    thread = threading.Thread(target=scheduler.run)
    with caplog.at_level(logging.WARNING):
        thread.start()
        try:
            bench.submit("before")
            wait_for(lambda: bench.pool.jobs_of("r") == ["before"])
            server.stop()
            wait_for(lambda: "Redis is away" in caplog.text)
            server.start()
            bench.submit("after")
            wait_for(lambda: bench.pool.jobs_of("r") == ["before", "after"])
            assert bench.status("before") is JobStatus.RUNNING
        finally:
            scheduler.stop()
            thread.join()
            bench.connection.close()
            server.stop()
    assert caplog.text.count("Redis is away") == 1
    assert caplog.text.count("Redis is back") == 1


def test_a_mistake_in_a_turn_is_logged_and_the_next_turn_is_made(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.hello("r")
    pool = StumblingPool(reported=bench.pool.reported)
    scheduler = bench.scheduler(pool=pool)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    bench.submit("j0")
    wait_for(lambda: pool.jobs_of("r") == ["j0"])
    scheduler.stop()
    thread.join()
    assert "a turn failed" in caplog.text


def test_the_load_is_told_in_one_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.hello("r", slots=4)
    bench.submit("j0")
    scheduler = bench.scheduler()
    with caplog.at_level(logging.INFO):
        scheduler.turn()
        bench.now_s = 59.0
        scheduler.turn()
        assert caplog.text.count("load:") == 1
        bench.now_s = 61.0
        scheduler.turn()
    assert "load: 1 sessions, 1 of 4 slots taken, 0 jobs wait" in caplog.text
