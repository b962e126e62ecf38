"""What others do while somebody is paused, and the replicas that a scheduler has in a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import SessionId

from .worker import HandWorker
from .world import World

Act = Callable[[World, HandWorker], None]


def reaped(world: World, worker: HandWorker) -> None:
    world.reap(worker.session.id)


def taken_over(world: World, worker: HandWorker) -> None:
    world.reap(worker.session.id)
    other = world.worker()
    other.assign(world.claim(other.session.id))
    other.turn(2)  # and stops for good, like one that died
    world.reap(other.session.id)


def owned_by_another(world: World, worker: HandWorker) -> None:
    world.reap(worker.session.id)
    other = world.worker()
    other.assign(world.claim(other.session.id))
    other.turn()


def done_elsewhere(world: World, worker: HandWorker) -> None:
    world.reap(worker.session.id)
    other = world.worker()
    other.assign(world.claim(other.session.id))
    other.turn(8)
    other.close()


def cancelled(world: World, worker: HandWorker) -> None:
    del worker
    world.cancel(world.refs)


def expired(world: World, worker: HandWorker) -> None:
    del worker
    world.make_due("deadline")


def retried(world: World, worker: HandWorker) -> None:
    world.make_due("retry")
    world.claim(worker.session.id)


def drained(world: World, worker: HandWorker) -> None:
    del world
    worker.close()


class HandPool:
    """Replicas that are there, of which one may be reported dead, once."""

    def __init__(self, *workers: HandWorker) -> None:
        self._workers = {worker.session.id.partition(".")[0]: worker for worker in workers}
        self.dead: list[str] = []

    def keep(self, name: str) -> None:
        del name

    def assign(self, name: str, jobs: Sequence[Claimed]) -> None:
        self._workers[name].assign(jobs)

    def sessions(self) -> dict[SessionId, str]:
        return {worker.session.id: name for name, worker in self._workers.items()}

    def deaths(self) -> list[str]:
        dead, self.dead = self.dead, []
        return dead
