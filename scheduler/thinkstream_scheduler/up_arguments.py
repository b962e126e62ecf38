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
from thinkstream_workers.config import ReplicaConfig

from .config import SchedulerConfig
from .launch import ServiceOptions
from .resources import num_cores

_DEMO = "demo"
_RANDOM = re.compile(r"random:(?P<config>.+?)(?P<seed>,seed=\d{1,18})?")
_DEVICE = re.compile(r"(cpu|cuda)(:\d+)?")
_DTYPES = ("float32", "bfloat16", "float16")
_ANY_SERVER = "redis://127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpArguments:
    """What a user writes behind `thinkstream up`, as it was written.

    A ``ServiceOptions`` is what this comes to, once there is a server.

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
        fast_small_batch: See ``ReplicaConfig``.
        drain_timeout_s: How long running jobs may go on once a signal has come.
    """

    redis_url: str | None = None
    num_partitions: int | None = None
    namespace: str = "ts"
    ray_address: str | None = None
    model: str = _DEMO
    num_replicas: int = 1
    slots: int = 32
    device: str = "cpu"
    dtype: str | None = None
    max_context: int | None = None
    kv_memory_bytes: int | None = None
    lease_ms: int = 5_000
    step_tokens: int | None = None
    fast_small_batch: bool = False
    drain_timeout_s: float = 10.0

    def checked(self) -> UpArguments:
        """Returns the same with the model as actors can find it, whose working directory is another.

        Raises:
            ConfigError: A value is outside its range, or the model is not there or not one of ours.
            InvalidRequest: The namespace is no name.
        """
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device: got {self.device!r}, allowed: cpu or cuda")
        if self.dtype not in (None, *_DTYPES):
            raise ConfigError(f"dtype: got {self.dtype!r}, allowed: {', '.join(_DTYPES)}")
        # Which server it will be changes nothing of what is checked.
        self.service_options(self.redis_settings(self.redis_url or _ANY_SERVER), "")
        return replace(self, model=_checked_model(self.model))

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
        is_local_cpu = self.device.partition(":")[0] == "cpu" and self.ray_address is None
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
            fast_small_batch=self.fast_small_batch,
            machine_share=1.0 / max(1, self.num_replicas),
            num_threads=replica_threads(self.num_replicas) if is_local_cpu else None,
        )
        return ServiceOptions(
            redis=redis,
            replica=replica,
            service_id=service_id,
            num_replicas=scheduler.num_replicas,
            ray_address=self.ray_address,
        )


def replica_threads(num_replicas: int) -> int:
    """Threads of each of several replicas that share this machine."""
    return max(1, num_cores() // max(1, num_replicas))


def _checked_model(model: str) -> str:
    if model == _DEMO:
        return model
    random = _RANDOM.fullmatch(model)
    path = Path(random["config"] if random else model)
    if not (path.exists() if random else path.is_dir()):
        raise ConfigError(f"model {model}: no such {'file' if random else 'folder'}")
    try:
        ThinkerConfig.from_json(path)
    except ModelError as error:
        raise ConfigError(f"model {model}: {error}") from error
    if random:
        return f"random:{path.absolute()}{random['seed'] or ''}"
    if not any(path.glob("*.safetensors")):
        raise ConfigError(f"model {model}: no weights (*.safetensors) in this folder")
    return str(path.absolute())
