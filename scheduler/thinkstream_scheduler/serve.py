"""The process of `thinkstream up`: starts what is asked for, serves until a signal, leaves nothing behind.

It owns the embedded server and a Ray of its own, which end with it however it ends. Knows no terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from thinkstream_client.discovery import ServiceState, read_state, remove_state, state_dir, write_state
from thinkstream_client.errors import ConfigError, ServiceUnavailable
from thinkstream_client.settings import RedisSettings
from thinkstream_workers.config import ReplicaConfig

from .config import ray_namespace
from .embedded import EmbeddedServer
from .launch import ServiceOptions, start_service
from .leftovers import end_processes, end_remote_actors
from .processes import boot_id, marked
from .resources import num_cores
from .stop_signals import StopSignals

MAIN_PROCESS = "service"
"""The part under which the state file names the process that serves."""

_LOCK_FILE = "up.lock"
_ID_FILE = "service-id"
_DATA_FOLDER = "data"
_DEMO = "demo"
_RANDOM = "random:"
_WATCH_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `up` is asked for.

    Attributes:
        redis_url: A running server, Sentinels or a Cluster; None starts a server of our own, whose data stay
            in the state folder.
        num_partitions: Partitions of a namespace that is set up now; None is 16 in a Cluster and 1 elsewhere.
        namespace: First part of every key.
        ray_address: A running Ray cluster; None starts one of our own.
        model: What the replicas serve, as ``ReplicaConfig`` names it.
        num_replicas: Replicas to hold.
        slots: Jobs at once of one replica.
        device: Where the model runs.
        dtype: Type of the weights; None is float32 on a CPU, else the checkpoint's own.
        max_context: Tokens of prompt and result together; None is the model's own limit.
        kv_memory_bytes: Memory of one replica for keys and values; None leaves the choice to the replica.
        lease_ms: How long a replica may be silent before its jobs go to others.
        step_tokens: Tokens of one step; None leaves the choice to the replica.
        drain_timeout_s: How long running jobs may go on once a signal has come.
    """

    redis_url: str | None = None
    num_partitions: int | None = None
    namespace: str = "ts"
    ray_address: str | None = None
    model: str = "demo"
    num_replicas: int = 1
    slots: int = 32
    device: str = "cpu"
    dtype: str | None = None
    max_context: int | None = None
    kv_memory_bytes: int | None = None
    lease_ms: int = 5_000
    step_tokens: int | None = None
    drain_timeout_s: float = 10.0


def serve(options: UpOptions, announce: Callable[[], None]) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP, then drains.

    Args:
        options: What to serve.
        announce: Called once the service is ready and the state file tells of it.

    Raises:
        ConfigError: Something given cannot be used.
        ServiceUnavailable: Another service runs here, or a part does not work.
        KeyboardInterrupt: A signal came before the service was ready.
    """
    with only_one(), StopSignals() as signals, contextlib.ExitStack() as cleanup:
        model = _absolute(options.model)
        former = _former()
        server = None
        url = options.redis_url
        if url is None:
            server = EmbeddedServer(state_dir() / _DATA_FOLDER)
            cleanup.callback(server.stop)
            server.start()
            url = server.url
        redis = RedisSettings(url, options.namespace, options.num_partitions)
        service_id = _service_id()
        names = ray_namespace(redis, service_id)
        if (former.ray_address, former.ray_namespace) != (options.ray_address or "", names):
            end_remote_actors(former)
        launch = service_options(replace(options, model=model), redis, service_id)
        service = start_service(launch, signals.check)
        cleanup.callback(remove_state)
        cleanup.callback(service.stop, drain_timeout_s=options.drain_timeout_s)
        pids = {MAIN_PROCESS: os.getpid(), "redis": server.pid if server is not None else 0}
        if options.ray_address is None:  # else its actors may run on any machine
            pids.update(service.pids)
        write_state(
            ServiceState(
                url=redis.url,
                namespace=redis.namespace,
                processes=marked(pids),
                boot_id=boot_id(),
                ray_address=options.ray_address or "",
                ray_namespace=names,
                model=options.model,
            )
        )
        announce()
        with contextlib.suppress(KeyboardInterrupt):
            _watch(server, signals.check)


def replica_threads(num_replicas: int) -> int:
    """Threads of each of several replicas that share this machine."""
    return max(1, num_cores() // max(1, num_replicas))


@contextlib.contextmanager
def only_one() -> Generator[None]:
    """Holds the state folder: two services would write one data folder.

    Raises:
        ServiceUnavailable: Somebody holds it.
    """
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            state = read_state()
            main = state.processes.get(MAIN_PROCESS) if state is not None else None
            where = f" (pid {main.pid})" if main is not None else ""
            raise ServiceUnavailable(
                f"a service runs here already{where}; end it with `thinkstream down`"
            ) from None
        yield


def _former() -> ServiceState:
    """What a service that was killed has told of itself; what is left of it on this machine is ended."""
    state = read_state()
    if state is None:
        return ServiceState(url="")
    end_processes(state)
    if not state.ray_address:
        remove_state()
    return state


def _service_id() -> str:
    """What tells this state folder's service from those of other folders and machines."""
    path = state_dir() / _ID_FILE
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    path.write_text(secrets.token_hex(4))
    return path.read_text()


def service_options(options: UpOptions, redis: RedisSettings, service_id: str) -> ServiceOptions:
    """What is started for what `up` was asked for.

    Args:
        options: What it was asked for; the model as actors can find it.
        redis: The server and the namespace.
        service_id: What tells this service from others.

    Raises:
        ConfigError: A value is outside its range.
    """
    is_local_cpu = options.device.partition(":")[0] == "cpu" and options.ray_address is None
    replica = ReplicaConfig(
        redis=redis,
        model=options.model,
        slots=options.slots,
        device=options.device,
        dtype=options.dtype,
        max_context=options.max_context,
        kv_memory_bytes=options.kv_memory_bytes,
        lease_ms=options.lease_ms,
        step_tokens=options.step_tokens,
        machine_share=1.0 / options.num_replicas,
        num_threads=replica_threads(options.num_replicas) if is_local_cpu else None,
    )
    return ServiceOptions(
        redis=redis,
        replica=replica,
        service_id=service_id,
        num_replicas=options.num_replicas,
        ray_address=options.ray_address,
    )


def _absolute(model: str) -> str:
    """The model as actors can find it, whose working directory is another.

    Raises:
        ConfigError: It is not there, which is told here before anything is started.
    """
    if model == _DEMO:
        return model
    prefix = _RANDOM if model.startswith(_RANDOM) else ""
    # What may follow a config's path, as in ``random:CONFIG,seed=1``, is the workers' business.
    path, comma, rest = model.removeprefix(prefix).partition(",") if prefix else (model, "", "")
    if not Path(path).exists():
        raise ConfigError(f"model {model}: no such {'file' if prefix else 'folder'}")
    return f"{prefix}{Path(path).absolute()}{comma}{rest}"


def _watch(server: EmbeddedServer | None, checkpoint: Callable[[], None]) -> None:
    while True:
        checkpoint()
        time.sleep(_WATCH_S)
        if server is not None and not server.is_running:
            raise ServiceUnavailable(f"the embedded server has ended; its log lies in {server.folder}")
