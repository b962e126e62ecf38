"""Every interleaving of one pause: whoever is stopped before or after any of its round trips, and wakes up
when the rest of the world has gone on without it, does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
from tests.support.acts import (
    Act,
    HandPool,
    cancelled,
    done_elsewhere,
    drained,
    expired,
    owned_by_another,
    reaped,
    retried,
    taken_over,
)
from tests.support.call_sites import CallSites
from tests.support.worker import HandWorker

from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import JobRef
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.loop import Scheduler
from thinkstream_scheduler.redis_queue import RedisQueue

if TYPE_CHECKING:
    from tests.support.world import World


def work(world: World) -> HandWorker:
    """A replica and its day's work: a suspect, a job in grains, one that fails once."""
    world.submit("suspect", num_tokens=2)
    dead = world.worker()
    world.claim(dead.session.id)
    world.reap(dead.session.id)
    world.submit("grains", num_tokens=5, grain=2)
    world.submit("fails", num_tokens=3)
    connection = Connection(world.settings)
    worker = HandWorker(world.settings, connection, "paused", slots=3)
    worker.failing.add("fails")
    worker.beat()
    return worker


def live(world: World, worker: HandWorker) -> None:
    """The replica's day, to its orderly end with a job in hand."""
    for turn in range(10):
        jobs = world.claim(worker.session.id)
        if turn:  # the first assignment is lost, its jobs are found by a beat
            worker.assign(jobs)
        if turn % 3 == 0:
            worker.publisher.beat_soon()
        worker.turn()
        if turn == 5:
            world.submit("late", num_tokens=40)
        if turn == 3:
            world.make_due("retry")
    worker.close()


SHORT = pytest.mark.parametrize(
    "shift", [0, pytest.param(1, marks=pytest.mark.soak)], ids=["one-side", "other-side"]
)
"""Each place is tried on one of its sides, by turns; the other side of each belongs to the long form."""


def sides(num_places: int, shift: int) -> Iterator[tuple[int, str]]:
    for place in range(num_places):
        yield place, ("before", "after")[(place + shift) % 2]


ACTS: Sequence[Act] = (
    reaped,
    taken_over,
    owned_by_another,
    done_elsewhere,
    cancelled,
    expired,
    retried,
    drained,
)


@SHORT
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_replica_wakes_up_anywhere(world: World, sites: CallSites, act: Act, shift: int) -> None:
    worker = work(world)
    sites.arm()
    live(world, worker)
    names = list(sites.names)
    assert {
        "ts1_beat", "ts1_step", "ts1_finish", "ts1_fail", "ts1_note", "ts1_release", "ts1_bye",
        "HMGET", "XREAD",
    } <= set(names)  # fmt: skip
    world.bring_to_an_end()
    world.check_end()
    for place, when in sides(len(names), shift):
        world.clear()
        worker = work(world)
        sealed: dict[JobRef, tuple[int, ...]] = {}

        def stop(worker: HandWorker = worker, sealed: dict[JobRef, tuple[int, ...]] = sealed) -> None:
            act(world, worker)
            snapshot = world.check()
            sealed.update({ref: job.token_ids for ref, job in snapshot.jobs.items() if job.finish})

        sites.arm(place, when, stop)
        live(world, worker)
        assert sites.has_acted
        after = world.check()
        assert {ref: after.jobs[ref].token_ids for ref in sealed} == sealed, (place, when, names[place])
        end_all(world)


def end_all(world: World) -> None:
    """Every session that is left dies, and another brings the jobs to their ends."""
    for session in world.run(functions.sessions(world.keys, 0)):
        world.reap(session.session)
    world.bring_to_an_end()
    world.check_end()


def another_scheduler(world: World, worker: HandWorker) -> None:
    queue = RedisQueue(world.settings)
    Scheduler(SchedulerConfig(redis=world.settings, num_replicas=0), queue, HandPool(worker)).turn()
    queue.close()
    worker.turn()


def replica_went(world: World, worker: HandWorker) -> None:
    del world
    worker.turn()
    worker.close()


def replica_is_reaped(world: World, worker: HandWorker) -> None:
    world.reap(worker.session.id)
    worker.turn(2)


SCHEDULER_ACTS: Sequence[Act] = (
    another_scheduler,
    replica_went,
    replica_is_reaped,
    cancelled,
    expired,
    retried,
)


def schedule(
    world: World, sites: CallSites, place: int | None = None, when: str = "", act: Act = reaped
) -> bool:
    """A scheduler's turns: a replica's death is told, another's lease is over, jobs wait to be given out."""
    sites.arm()
    lost, dead, alive = world.worker(slots=1), world.worker(slots=2), world.worker()
    for number in range(6):
        world.submit(f"job-{number}", num_tokens=3)
    for worker in (lost, dead):
        worker.assign(world.claim(worker.session.id, 1 if worker is lost else 2))
        worker.turn()
    pool = HandPool(lost, dead, alive)
    queue = RedisQueue(world.settings)
    scheduler = Scheduler(SchedulerConfig(redis=world.settings, num_replicas=0), queue, pool)
    sites.arm(place, when, lambda: act(world, alive))
    scheduler.turn()
    world.raw.zadd(world.keys.leases(0), {lost.session.id: 1})
    pool.dead.append(dead.session.id.partition(".")[0])
    for turn in range(4):
        if sites.has_acted or turn < 3:
            scheduler.turn()
        alive.turn()
        world.check()
    queue.close()
    return sites.has_acted


@pytest.mark.parametrize("act", SCHEDULER_ACTS, ids=lambda act: act.__name__)
def test_a_scheduler_wakes_up_anywhere(world: World, sites: CallSites, act: Act) -> None:
    schedule(world, sites)
    names = list(sites.names)
    assert {"ts1_reap", "ts1_sweep", "ts1_sessions", "ts1_backlog", "ts1_claim"} <= set(names)
    for place in range(len(names)):
        for when in ("before", "after"):
            world.clear()
            assert schedule(world, sites, place, when, act)
            end_all(world)
