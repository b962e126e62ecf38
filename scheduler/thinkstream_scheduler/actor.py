"""The Ray shell round the scheduler's loop: detached, restarted by Ray whenever it dies."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import ray
import ray.exceptions

from thinkstream_workers.config import ReplicaConfig
from thinkstream_workers.log_format import LOG_FORMAT

from .config import SchedulerConfig, ray_namespace
from .loop import Scheduler
from .pool import RayPool, explained
from .redis_queue import RedisQueue
from .resources import ReplicaResources

_ray: Any = ray  # whose types do not reach through results
_NAME = "scheduler"
_CONTROL_TIMEOUT_S = 60.0
_POLL_S = 0.2


class SchedulerSettings(NamedTuple):
    """All that a scheduler is told.

    Attributes:
        config: Its own settings.
        replica: What each replica is told.
        resources: What each replica gets.
    """

    config: SchedulerConfig
    replica: ReplicaConfig
    resources: ReplicaResources

    @property
    def namespace(self) -> str:
        """The Ray namespace of the service."""
        return ray_namespace(self.config.redis, self.config.service_id)

    def pool(self) -> RayPool:
        """The replicas; none is held yet."""
        return RayPool(self.replica, self.resources, self.namespace)


@ray.remote
class SchedulerActor:
    """Runs one `Scheduler` in a thread from its construction on.

    It holds no state that matters: after a restart it adopts the living replicas and looks at Redis.

    Args:
        config: The scheduler's settings.
        replica: What each replica is told.
        resources: What each replica gets.
    """

    def __init__(self, config: SchedulerConfig, replica: ReplicaConfig, resources: ReplicaResources) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        self._settings = SchedulerSettings(config, replica, resources)
        self._scheduler = Scheduler(config, RedisQueue(config.redis), self._settings.pool())
        self._thread = threading.Thread(target=self._scheduler.run, name="scheduler", daemon=True)
        self._thread.start()

    @ray.method
    def pid(self) -> int:
        """The process it runs in; answers once the loop runs."""
        return os.getpid()

    @ray.method
    def settings(self) -> SchedulerSettings:
        """What it was told."""
        return self._settings

    @ray.method
    def stop(self) -> None:
        """Ends the loop: nothing is claimed and nobody replaced after this returns."""
        self._scheduler.stop()
        self._thread.join()


class SchedulerHandle:
    """The service's scheduler actor, adopted where it lives, else started; does not wait for it.

    Args:
        settings: What it is told.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self._actor: Any = (
            cast("Any", SchedulerActor)
            .options(
                name=_NAME,
                namespace=settings.namespace,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                num_cpus=0,
            )
            .remote(*settings)
        )

    @staticmethod
    def lives(settings: SchedulerSettings, checkpoint: Callable[[], None] = lambda: None) -> bool:
        """Whether a scheduler of the service runs that was told the same.

        Args:
            settings: What it was told.
            checkpoint: Called while its answer is waited for; what it raises ends the wait.
        """
        try:
            actor = _ray.get_actor(_NAME, namespace=settings.namespace)
            found: SchedulerSettings = _answer(actor.settings.remote(), checkpoint)
        except (ValueError, ray.exceptions.RayError):
            return False
        return found == settings

    def wait_until_ready(self, checkpoint: Callable[[], None]) -> int:
        """Returns its process id once its loop runs.

        Args:
            checkpoint: Called all the while; what it raises ends the wait.

        Raises:
            ServiceUnavailable: It does not start.
        """
        try:
            pid: int = _answer(self._actor.pid.remote(), checkpoint)
        except ray.exceptions.RayError as error:
            raise explained(error, "the scheduler") from error
        return pid

    def stop(self) -> None:
        """Ends the loop and returns when it has ended, or hangs."""
        ray.wait([self._actor.stop.remote()], timeout=_CONTROL_TIMEOUT_S)

    def kill(self) -> None:
        """Ends the actor at once."""
        ray.kill(self._actor, no_restart=True)


def _answer(call: Any, checkpoint: Callable[[], None]) -> Any:
    """Returns what an actor answers to a call.

    Raises:
        RayError: It has died, or does not answer in time.
    """
    until_s = time.monotonic() + _CONTROL_TIMEOUT_S
    while not _ray.wait([call], timeout=_POLL_S)[0] and time.monotonic() < until_s:
        checkpoint()
    return _ray.get(call, timeout=0)
