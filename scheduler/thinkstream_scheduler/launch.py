"""Puts the service together: server checks, Ray, replicas, scheduler; and takes it apart again.

The only place that knows all the parts. What they are is decided by its caller, who also owns the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from thinkstream_client.errors import ConfigError
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.protocol.server_check import server_check
from thinkstream_client.settings import RedisSettings
from thinkstream_workers.config import ReplicaConfig

from .config import SchedulerConfig
from .leftovers import end_actors
from .ray_runtime import RayRuntime
from .resources import ReplicaResources, num_cores, shortage

logger = logging.getLogger(__name__)

_ROOM_TIMEOUT_S = 2.0  # what an actor held until now is told to be free a moment later
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """What a service consists of, with every choice made and a server that runs.

    `up` makes it of its ``UpArguments``; the demo writes it down itself.

    Attributes:
        redis: The server and the namespace.
        replica: What each replica is told; names are filled in.
        service_id: Tells this service from others on the same namespace or in the same Ray cluster; empty
            where it has both to itself. Actors that live under the same id and were told the same are
            adopted, those that were told anything else are ended first.
        num_replicas: Replicas to hold.
        ray_address: A running Ray cluster; None starts one for this process.
        num_cpus: CPUs that Ray sets aside for a replica; None shares this machine's among the replicas.
        ready_timeout_s: How long the replicas may load.
        show_logs: Whether the actors' log lines appear on our stderr.
    """

    redis: RedisSettings
    replica: ReplicaConfig
    service_id: str = ""
    num_replicas: int = 1
    ray_address: str | None = None
    num_cpus: float | None = None
    ready_timeout_s: float = 1_800.0
    show_logs: bool = True


class Service:
    """The scheduler and its replicas, from `start_service` on.

    Args:
        options: What to start.
        runtime: The connection to Ray; closed with the service.
        checkpoint: Called while it waits; what it raises ends the start.

    Attributes:
        settings: What its scheduler was told.
        pids: Its processes as they were at the start, wherever they run: the actors by name, the parts of a
            Ray of our own by number.

    Raises:
        ConfigError: Ray has no room for the replicas.
        ServiceUnavailable: What a former service left does not end.
    """

    def __init__(self, options: ServiceOptions, runtime: RayRuntime, checkpoint: Callable[[], None]) -> None:
        from .actor import SchedulerHandle, SchedulerSettings

        resources = _resources(options)
        config = SchedulerConfig(
            redis=options.redis, service_id=options.service_id, num_replicas=options.num_replicas
        )
        settings = SchedulerSettings(config, options.replica, resources)
        if not SchedulerHandle.lives(settings, checkpoint):
            num_ended = end_actors(settings.namespace)
            if num_ended:
                logger.warning("ended %d actors that a service with other settings had left", num_ended)
            _check_room(resources, options.num_replicas, runtime, checkpoint)
        self._runtime = runtime
        self._names = config.replica_names
        self.settings = settings
        self._pool = settings.pool()
        for name in self._names:
            self._pool.keep(name)
        self._scheduler = SchedulerHandle(settings)
        self.pids: dict[str, int] = {}

    def wait_until_ready(self, timeout_s: float, checkpoint: Callable[[], None]) -> None:
        """Returns once every replica takes jobs.

        Args:
            timeout_s: How long they may load.
            checkpoint: Called all the while; what it raises ends the wait.

        Raises:
            ConfigError: A replica cannot use its model or its namespace.
            ServiceUnavailable: An actor died, or they took too long.
        """
        self.pids = self._pool.wait_until_ready(timeout_s, checkpoint)
        self.pids["scheduler"] = self._scheduler.wait_until_ready(checkpoint)
        others = set(self._runtime.local_processes()) - set(self.pids.values())
        self.pids.update({f"ray-{i}": pid for i, pid in enumerate(sorted(others))})

    def stop(self, *, drain_timeout_s: float = 10.0) -> None:
        """Stops claiming, drains the replicas, ends all actors and leaves Ray.

        What a replica has not finished when its time is over goes back to the queue, and is taken up behind
        its last published token by whoever claims it next.

        Args:
            drain_timeout_s: How long running jobs may go on.
        """
        try:
            self._scheduler.stop()
            self._hold_successors()
            self._pool.drain(drain_timeout_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends all actors at once and leaves Ray."""
        try:
            self._scheduler.kill()
            self._hold_successors()
            self._pool.kill()
        finally:
            self._runtime.close()

    def _hold_successors(self) -> None:
        """Takes hold of the replicas that the scheduler started in place of ours."""
        self._pool.deaths()
        for name in self._names:
            self._pool.adopt(name)


def _go_on() -> None:
    """The checkpoint of a start that nothing ends early."""


def start_service(options: ServiceOptions, checkpoint: Callable[[], None] = _go_on) -> Service:
    """Starts everything and returns once every replica can take jobs.

    Args:
        options: What to start.
        checkpoint: Called between steps and while replicas load; what it raises ends the start.

    Raises:
        ConfigError: The server, the namespace or the model cannot be used.
        ServiceUnavailable: Redis or Ray cannot be reached, or a replica died or did not get ready.
        Nothing that was started is left running.
    """
    redis = _checked(options.redis)
    options = replace(options, redis=redis, replica=replace(options.replica, redis=redis))
    runtime = RayRuntime(address=options.ray_address, show_logs=options.show_logs)
    try:
        checkpoint()
        service = Service(options, runtime, checkpoint)
    except BaseException:
        runtime.close()
        raise
    try:
        service.wait_until_ready(options.ready_timeout_s, checkpoint)
    except BaseException:
        service.kill()
        raise
    return service


def _checked(settings: RedisSettings) -> RedisSettings:
    """Returns the settings with the partitions that the namespace has; sets it up if nobody has."""
    connection = Connection(settings)
    try:
        server = connection.run(server_check())
        settings = settled(connection, settings)
    finally:
        connection.close()
    logger.info("%s %s at %s", server.name, server.version, settings.masked_url)
    if not server.append_only:
        logger.warning("%s keeps no append-only file: jobs are lost when it stops", server.name)
    return settings


def _check_room(
    resources: ReplicaResources, num_replicas: int, runtime: RayRuntime, checkpoint: Callable[[], None]
) -> None:
    """Returns if the replicas fit into the cluster: Ray would let an actor that does not wait for ever.

    Raises:
        ConfigError: They do not.
    """
    until_s = time.monotonic() + _ROOM_TIMEOUT_S
    while (missing := shortage(resources, num_replicas, runtime.room())) is not None:
        checkpoint()
        if time.monotonic() > until_s:
            raise ConfigError(missing)
        time.sleep(_POLL_S)


def _resources(options: ServiceOptions) -> ReplicaResources:
    num_cpus = options.num_cpus
    if num_cpus is None:
        # On a machine of our own the replicas share what there is; in a cluster each has a core at least.
        share = num_cores() / max(1, options.num_replicas)
        num_cpus = 1.0 if options.ray_address else max(0.01, min(1.0, round(share, 2) - 0.01))
    num_gpus = 1.0 if options.replica.is_on_gpu else 0.0
    return ReplicaResources(num_cpus=num_cpus, num_gpus=num_gpus)
