"""The service that is broken: a killable server, Ray of one or two nodes, two schedulers, readers."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from infra.own_processes import RAYLET, REPLICA, find_own

from thinkstream_client.errors import ThinkstreamError
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import SessionInfo
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler import processes
from thinkstream_scheduler.config import SchedulerConfig, ray_namespace
from thinkstream_scheduler.launch import Service, ServiceOptions, start_service
from thinkstream_scheduler.resources import ReplicaResources
from thinkstream_workers.config import ReplicaConfig

from .options import ChaosOptions
from .reader import STOP_FILE, Orders
from .servers import make_servers

T = TypeVar("T")

_NUM_CPUS = 0.6
_OBJECT_STORE_BYTES = 100 << 20


class Stage:
    """Everything that runs. Call it from the main thread: the server ends with the thread that started it.

    Args:
        options: The run.
        folder: Where server and readers keep their files.
    """

    def __init__(self, options: ChaosOptions, folder: Path) -> None:
        self._options, self.folder = options, folder
        self._servers = make_servers(options.topology, folder / "servers")
        self._not_ours = processes.descendants(os.getpid())
        self._readers: list[subprocess.Popen[bytes]] = []
        self._second_node: subprocess.Popen[bytes] | None = None
        self._second_scheduler: Any = None
        self._service: Service | None = None
        self._connection: Connection | None = None
        self._keys: Keys | None = None

    @property
    def redis(self) -> RedisSettings:
        """Where Redis is."""
        return RedisSettings(url=self._servers.url)

    def start(self, checkpoint: Callable[[], None]) -> None:
        """Starts everything but the readers; returns when all replicas take jobs.

        Args:
            checkpoint: Called all the while; what it raises ends the start.
        """

        def on_turn() -> None:
            checkpoint()
            self._start_second_node_once()

        self._servers.start()
        self._set_appendfsync()
        options = self._options
        replica = ReplicaConfig(
            redis=self.redis, slots=options.slots, lease_ms=options.lease_ms, num_threads=1
        )
        self._service = start_service(
            ServiceOptions(
                redis=self.redis,
                replica=replica,
                num_replicas=options.num_replicas,
                num_cpus=_NUM_CPUS,
                show_logs=False,
            ),
            on_turn,
        )
        self._start_second_scheduler(replica)

    def stop(self) -> None:
        """Ends everything, whatever state it is in."""
        for reader in self._readers:
            reader.kill()
            reader.wait()
        if self._service is not None:
            import ray

            if self._second_scheduler is not None:
                ray.kill(self._second_scheduler, no_restart=True)
            self._service.kill()
        if self._second_node is not None:
            self._second_node.kill()
            self._second_node.wait()
        if self._connection is not None:
            self._connection.close()
        self._servers.stop()
        processes.end(self._ours(), timeout_s=1.0)

    def kill_redis(self, rng: random.Random) -> int | None:
        """Kills a server and returns its process; None if it is too early for that."""
        return self._servers.kill(rng)

    def restart_redis(self) -> None:
        """Starts what `kill_redis` has killed, on the data and the port that it had."""
        self._servers.restart()
        self._set_appendfsync()

    def cut_connection(self, rng: random.Random) -> None:
        """Has a server close one of its clients' connections; does nothing while no server lives."""
        ports = self._servers.ports()
        if not ports:
            return
        with _client(rng.choice(ports)) as client:
            clients = client.client_list(_type="normal")
            own = client.client_id()
            others = [one["id"] for one in clients if int(one["id"]) != own]
            if others:
                client.client_kill_filter(_id=rng.choice(others))

    def run(self, call: Call[T]) -> T:
        """Runs one call."""
        return self._connected().run(call)

    @property
    def keys(self) -> Keys:
        """The names of the keys, once the service has set its namespace up."""
        if self._keys is None:
            self._keys = settled(self._connected(), self.redis).keys
        return self._keys

    def sessions(self) -> list[SessionInfo]:
        """The sessions that Redis knows; none while it is away."""
        with contextlib.suppress(ThinkstreamError):
            return self.run(functions.sessions(self.keys, 0))
        return []

    def find(self, name: str) -> list[int]:
        """Processes of ours whose command line has ``name`` in it."""
        return find_own(name, self._ours())

    def start_readers(self) -> None:
        """Starts the client processes."""
        options = self._options
        Orders(
            url=self.redis.url,
            seed=options.seed,
            num_specs=options.num_specs,
            num_readers=options.num_readers,
            window=options.window,
            min_jobs=-(-options.min_jobs // options.num_readers),
        ).save(self.folder)
        self._readers = [self._reader(i) for i in range(options.num_readers)]

    def kill_reader(self, number: int) -> int:
        """Kills a client process, starts it again, and returns the id it had."""
        reader = self._readers[number]
        reader.kill()
        reader.wait()
        self._readers[number] = self._reader(number)
        return reader.pid

    def tell_readers_to_end(self) -> None:
        """From now on they begin no job."""
        (self.folder / STOP_FILE).touch()

    def reader_codes(self) -> Sequence[int | None]:
        """Exit code of each reader, None of those that run."""
        return [reader.poll() for reader in self._readers]

    def kill_raylet(self) -> list[int] | None:
        """Kills the raylet of the second node.

        Returns:
            The replicas on the node, which end with it; None if it does not run.
        """
        node = self._second_node
        if node is None:
            return None
        there = processes.descendants(node.pid)
        raylets = [pid for pid in self.find(RAYLET) if pid in there]
        replicas = [pid for pid in self.find(REPLICA) if pid in there]
        for pid in raylets:
            os.kill(pid, signal.SIGKILL)
        return replicas if raylets else None

    def start_second_node(self) -> None:
        """Has another raylet join, in place of one that was killed."""
        import ray

        if self._second_node is not None:
            self._second_node.terminate()
            self._second_node.wait()
        context: Any = ray.get_runtime_context()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--address"]
        command += [context.gcs_address, "--node-ip-address", "127.0.0.1", "--num-cpus", "2"]
        command += ["--object-store-memory", str(_OBJECT_STORE_BYTES)]
        with (self.folder / "second-node.log").open("ab") as log:
            self._second_node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _start_second_node_once(self) -> None:
        """Within the start, where Ray runs already, and replicas may need the node to load."""
        if self._options.second_node and self._second_node is None:
            self.start_second_node()

    def _start_second_scheduler(self, replica: ReplicaConfig) -> None:
        from thinkstream_scheduler.actor import SchedulerActor

        config = SchedulerConfig(redis=self.redis, num_replicas=self._options.num_replicas)
        self._second_scheduler = (
            cast("Any", SchedulerActor)
            .options(
                name="scheduler-2",
                namespace=ray_namespace(self.redis),
                lifetime="detached",
                max_restarts=-1,
                num_cpus=0,
            )
            .remote(config, replica, ReplicaResources(num_cpus=_NUM_CPUS))
        )

    def _reader(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "infra.chaos.reader", str(self.folder), str(number)]
        with (self.folder / f"reader-{number}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.redis)
        return self._connection

    def _set_appendfsync(self) -> None:
        for port in self._servers.ports():
            with _client(port) as client:
                client.config_set("appendfsync", self._options.appendfsync)

    def _ours(self) -> dict[int, int]:
        now = processes.descendants(os.getpid())
        return {pid: started for pid, started in now.items() if self._not_ours.get(pid) != started}


def _client(port: int) -> Any:
    """A client of one server, whatever the topology."""
    import redis

    return redis.Redis(port=port, socket_timeout=5.0)
