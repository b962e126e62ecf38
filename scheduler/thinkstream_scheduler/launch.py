"""Puts the service together: server checks, Ray, replicas, scheduler; and takes it apart again.

The only place that knows all the parts. What they are is decided by its caller, who also owns the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.protocol.server_check import server_check
from thinkstream_client.settings import RedisSettings
from thinkstream_workers.config import ReplicaConfig

from .config import SchedulerConfig
from .ray_runtime import RayRuntime
from .resources import ReplicaResources, num_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """What to start.

    Attributes:
        redis: The server and the namespace.
        replica: What each replica is told; names are filled in.
        num_replicas: Replicas to hold.
        ray_address: A running Ray cluster; None starts one for this process.
        num_cpus: CPUs that Ray sets aside for a replica; None shares this machine's among the replicas.
        num_gpus: GPUs that Ray sets aside for a replica; None is one where the device is a GPU.
        ready_timeout_s: How long the replicas may load.
        show_logs: Whether the actors' log lines appear on our stderr.
    """

    redis: RedisSettings
    replica: ReplicaConfig
    num_replicas: int = 1
    ray_address: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    ready_timeout_s: float = 1_800.0
    show_logs: bool = True


class Service:
    """The scheduler and its replicas, from `start_service` on.

    Attributes:
        pids: Its processes as they were at the start: the actors by name, the parts of a Ray of our own by
            number.
    """

    def __init__(self, options: ServiceOptions, runtime: RayRuntime) -> None:
        from .actor import SchedulerHandle
        from .pool import RayPool

        resources = _resources(options)
        config = SchedulerConfig(redis=options.redis, num_replicas=options.num_replicas)
        self._runtime = runtime
        self._names = config.replica_names
        self._pool = RayPool(options.replica, resources)
        for name in self._names:
            self._pool.keep(name)
        self._scheduler = SchedulerHandle(config, options.replica, resources)
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
        self.pids["scheduler"] = self._scheduler.wait_until_ready()
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
        service = Service(options, runtime)
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


def _resources(options: ServiceOptions) -> ReplicaResources:
    num_cpus = options.num_cpus
    if num_cpus is None:
        # On a machine of our own the replicas share what there is; in a cluster each has a core at least.
        share = num_cores() / max(1, options.num_replicas)
        num_cpus = 1.0 if options.ray_address else max(0.01, min(1.0, round(share, 2) - 0.01))
    num_gpus = options.num_gpus
    if num_gpus is None:
        num_gpus = 0.0 if options.replica.device == "cpu" else 1.0
    return ReplicaResources(num_cpus=num_cpus, num_gpus=num_gpus)
