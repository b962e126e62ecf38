"""What `up` is told, whether that can be served, and what service it comes to.

Looks at the arguments and at the model's config alone: starts nothing and asks nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from thinkstream_client.errors import ConfigError
from thinkstream_client.settings import RedisSettings
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.errors import ModelError
from thinkstream_model.model_name import DEMO, ModelName
from thinkstream_workers import host_memory
from thinkstream_workers.config import ReplicaConfig
from thinkstream_workers.engine_config import MAX_KV_BYTES, EngineConfig

from .cluster_address import check_address
from .config import MAX_WAIT_S, SchedulerConfig
from .launch import ServiceOptions
from .resources import num_cores

_HUB_NAME = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]+")
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number of each."""
_ANY_SERVER = "redis://127.0.0.1"
_PROCESS_BYTES = 160 << 20
"""What Python, Ray and torch take of a replica's memory before it has a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpArguments:
    """What a user writes behind `thinkstream up`, as it was written.

    A ``ServiceOptions`` is what this comes to, once there is a server.

    Attributes:
        redis_url: A running server, Sentinels or a Cluster; None starts a server of our own, whose data stay
            in the state folder.
        num_partitions: Partitions of a namespace that is set up now; None is 16 in a Cluster and 1 elsewhere.
        namespace: First part of every key.
        ray_address: A running Ray cluster, ``HOST:PORT`` or ``auto``; None starts one of our own.
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
    model: str = DEMO
    num_replicas: int = 1
    slots: int = 32
    device: str = "cpu"
    dtype: str | None = None
    max_context: int | None = None
    kv_memory_bytes: int | None = None
    lease_ms: int = 5_000
    step_tokens: int | None = None
    drain_timeout_s: float = 10.0

    def checked(self) -> UpArguments:
        """Returns the same with the model as actors can find it, whose working directory is another.

        Raises:
            ConfigError: A value is outside its range, or the model is not there or not one of ours.
            InvalidRequest: The namespace is no name.
        """
        if self.dtype not in (None, *_DTYPES):
            raise ConfigError(f"dtype: got {self.dtype!r}, allowed: {', '.join(_DTYPES)}")
        if self.ray_address is not None:
            check_address(self.ray_address)
        model, config = _found_model(self.model)
        self._check_kv_memory(config)
        # Which server it will be changes nothing of what is checked.
        self.service_options(self.redis_settings(self.redis_url or _ANY_SERVER), "")
        self._check_replicas(config)
        self._check_drain()
        trained = config.max_position_embeddings
        if self.max_context is not None and self.max_context > trained:
            raise ConfigError(f"max_context: got {self.max_context}, allowed: up to the model's {trained}")
        return replace(self, model=model)

    def redis_settings(self, url: str) -> RedisSettings:
        """The server and the namespace.

        Raises:
            ConfigError, InvalidRequest: One of them is of no known form.
        """
        return RedisSettings(url, self.namespace, self.num_partitions)

    def service_options(self, redis: RedisSettings, service_id: str) -> ServiceOptions:
        """The service that is asked for.

        Args:
            redis: The server and the namespace.
            service_id: What tells this service from others.

        Raises:
            ConfigError: A value is outside its range.
        """
        scheduler = SchedulerConfig(redis=redis, service_id=service_id, num_replicas=self.num_replicas)
        replica = ReplicaConfig(
            redis=redis,
            model=self.model,
            slots=self.slots,
            device=self.device,
            dtype=self.dtype,
            max_context=self.max_context,
            kv_memory_bytes=self.kv_memory_bytes,
            lease_ms=self.lease_ms,
            step_tokens=self.step_tokens,
            machine_share=1.0 / max(1, self.num_replicas),
            num_threads=replica_threads(self.num_replicas) if self._is_on_our_cores else None,
        )
        return ServiceOptions(
            redis=redis,
            replica=replica,
            service_id=service_id,
            num_replicas=scheduler.num_replicas,
            ray_address=self.ray_address,
        )

    @property
    def _is_on_our_cores(self) -> bool:
        """Whether the replicas compute on this machine's cores, in its memory."""
        return self.device == "cpu" and self.ray_address is None

    @property
    def _shared_bytes(self) -> int | None:
        """Memory of this machine, where the replicas share it and it is known."""
        return host_memory.total_bytes() if self._is_on_our_cores else None

    def _check_drain(self) -> None:
        if not 0.0 <= self.drain_timeout_s <= MAX_WAIT_S:
            raise ConfigError(
                f"drain_timeout_s: got {self.drain_timeout_s}, allowed: a number in [0, {MAX_WAIT_S:g}]"
            )

    def _check_replicas(self, config: ThinkerConfig) -> None:
        total = self._shared_bytes
        if total is None:
            return
        each = _PROCESS_BYTES + config.num_parameters * self._dtype_bytes
        allowed = max(1, total // each)
        if self.num_replicas > allowed:
            raise ConfigError(
                f"--replicas: got {self.num_replicas}, allowed: up to {allowed}, for each takes "
                f"{_size(each)} of this machine's {_size(total)} of memory at least"
            )

    def _check_kv_memory(self, config: ThinkerConfig) -> None:
        given = self.kv_memory_bytes
        if given is None:
            return
        block_size = EngineConfig().block_size
        least = config.kv_bytes(block_size, self._dtype_bytes)
        if given < least:
            raise ConfigError(
                f"--kv-memory: got {given} bytes, allowed: at least {least}, the keys and values of "
                f"{block_size} tokens; sizes have units, as in 8GiB"
            )
        total = self._shared_bytes
        allowed = MAX_KV_BYTES if total is None else total // max(1, self.num_replicas)
        if given > allowed:
            raise ConfigError(
                f"--kv-memory: got {_size(given)}, allowed: up to {_size(allowed)}"
                + (", a replica's share of this machine's memory" if total is not None else "")
            )

    @property
    def _dtype_bytes(self) -> int:
        """Bytes of a number of the model; the fewest that they may be where the checkpoint decides."""
        if self.dtype is None:
            return 4 if self.device == "cpu" else 2
        return _DTYPES[self.dtype]


def _size(num_bytes: int) -> str:
    """A size in the unit that it fills, rounded down: what is allowed may be given as it is shown."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 1 << shift:
            return f"{(num_bytes * 100 >> shift) / 100:g}{unit}"
    return f"{num_bytes}B"


def replica_threads(num_replicas: int) -> int:
    """Threads of each of several replicas that share this machine."""
    return max(1, num_cores() // max(1, num_replicas))


def _found_model(model: str) -> tuple[str, ThinkerConfig]:
    """The model as actors can find it, and its shape.

    Raises:
        ConfigError: It is not there, or not one of ours.
    """
    if not model:
        raise ConfigError("model: got '', allowed: demo, random:CONFIG[,seed=N] or a checkpoint's folder")
    name = ModelName.parse(model)
    is_read = name.random_seed is None
    if not _is_there(name.path, is_folder=is_read):
        hint = "; a hub's name is not fetched: download it first" if _HUB_NAME.fullmatch(model) else ""
        raise ConfigError(f"model {model}: no such {'folder' if is_read else 'file'}{hint}")
    try:
        config = ThinkerConfig.from_json(name.path)
    except ModelError as error:
        raise ConfigError(f"model {model}: {error}") from error
    if is_read and not any(name.path.glob("*.safetensors")):
        raise ConfigError(f"model {model}: no weights (*.safetensors) in this folder")
    return name.from_anywhere(), config


def _is_there(path: Path, *, is_folder: bool) -> bool:
    try:
        return path.is_dir() if is_folder else path.exists()
    except OSError:  # too long to be a file's name
        return False
