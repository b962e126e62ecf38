"""A whole service in threads: the scheduler and one replica without a model, for any kind of server."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.support.worker import HandWorker

from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.records import SessionId
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.loop import Scheduler
from thinkstream_scheduler.redis_queue import RedisQueue


class ThreadPool:
    """The scheduler's view of one replica that is always there."""

    def __init__(self, worker: HandWorker) -> None:
        self._worker = worker

    def keep(self, name: str) -> None:
        del name

    def assign(self, name: str, jobs: Sequence[Claimed]) -> None:
        del name
        self._worker.assign(jobs)

    def deaths(self) -> list[str]:
        return []

    def sessions(self) -> dict[SessionId, str]:
        return {self._worker.session.id: "replica-0"}


class ThreadedService:
    """Serves a namespace from entering to leaving.

    Args:
        scheduler: Where Redis is, for the scheduler.
        worker: The same for the replica, where it is another user.
        step_s: Time between two tokens of a job.
    """

    def __init__(
        self, scheduler: RedisSettings, worker: RedisSettings | None = None, *, step_s: float = 0.001
    ) -> None:
        connection = Connection(scheduler)
        self.settings = settled(connection, scheduler)
        connection.close()
        self._connection = Connection(worker or scheduler)
        settings = settled(self._connection, worker or scheduler)
        self.worker = HandWorker(settings, self._connection, "replica-0", slots=64, lease_ms=4_000)
        config = SchedulerConfig(redis=self.settings, num_replicas=1)
        self._queue = RedisQueue(self.settings)
        self._scheduler = Scheduler(config, self._queue, ThreadPool(self.worker))
        self._step_s, self._stopping = step_s, threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._scheduler.run, self._decode)]

    def __enter__(self) -> Self:
        self.worker.beat()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.stop()
        self._stopping.set()
        self.worker.publisher.stop()
        for thread in self._threads:
            thread.join()
        self.worker.close()
        self._queue.close()
        self._connection.close()

    def _decode(self) -> None:
        while not self._stopping.wait(self._step_s):
            self.worker.turn()
