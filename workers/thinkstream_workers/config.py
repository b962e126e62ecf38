"""What one replica is told at its start."""

from __future__ import annotations

from dataclasses import dataclass

from thinkstream_client.errors import ConfigError
from thinkstream_client.keys import check_name
from thinkstream_client.protocol.session_calls import MAX_LEASE_MS
from thinkstream_client.settings import RedisSettings

from .engine_config import EngineConfig, check_range

MIN_LEASE_MS = 100
_DEVICES = ("cpu", "cuda")
_MAX_THREADS = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """The settings of one replica: who it is, where Redis is, which model it serves and how much at once.

    Attributes:
        redis: The server and the namespace that it serves.
        name: The replica's name; its sessions and its Ray actor carry it.
        model: Folder of a checkpoint, ``demo`` for the one in the package, or ``random:CONFIG`` for random
            weights in the shape of a ``config.json``.
        device: Where the model runs: ``cpu``, or ``cuda`` for the one GPU that the process is shown.
        dtype: Type of the weights and of the arithmetic; None is float32 on a CPU, else the checkpoint's own.
        slots: Jobs at once.
        lease_ms: How long the replica may be silent before its jobs go to others; a day at most.
        max_context: Tokens of prompt and result together; None is the model's own limit.
        step_tokens: Tokens of one step, prefill and decode together; None is 8192, or the slots where they
            are more; on a CPU 512, and fewer where such a step would outlast a quarter of the lease.
        kv_memory_bytes: Memory for keys and values; None leaves the choice to the engine.
        machine_share: Part of the machine's free memory from which the engine may choose: one half where two
            replicas share a machine.
        num_threads: Threads of one arithmetic operation on the CPU; None is torch's choice.

    Raises:
        ConfigError: A value outside its range.
    """

    redis: RedisSettings
    name: str = "replica-0"
    model: str = "demo"
    device: str = "cpu"
    dtype: str | None = None
    slots: int = 32
    lease_ms: int = 5_000
    max_context: int | None = None
    step_tokens: int | None = None
    kv_memory_bytes: int | None = None
    machine_share: float = 1.0
    num_threads: int | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        if self.device not in _DEVICES:
            raise ConfigError(f"device: got {self.device!r}, allowed: {' or '.join(_DEVICES)}")
        check_range("lease_ms", self.lease_ms, MIN_LEASE_MS, MAX_LEASE_MS)
        check_range("num_threads", self.num_threads, 1, _MAX_THREADS)
        _ = self.engine  # which checks all others

    @property
    def namespace(self) -> str:
        """First part of every key."""
        return self.redis.namespace

    @property
    def engine(self) -> EngineConfig:
        """The limits of the replica's engine: a slot is a sequence."""
        usual = max(self.slots, self._usual_step_tokens)
        return EngineConfig(
            slots=self.slots,
            step_tokens=usual if self.step_tokens is None else self.step_tokens,
            kv_memory_bytes=self.kv_memory_bytes,
            machine_share=self.machine_share,
            max_context=self.max_context,
        )

    @property
    def is_on_gpu(self) -> bool:
        """Whether the model runs on a device that works for itself, by kernels compiled at first use."""
        return self.device == "cuda"

    @property
    def is_step_measured(self) -> bool:
        """Whether the tokens of a step follow from how long a step takes."""
        return self.step_tokens is None and not self.is_on_gpu

    @property
    def _usual_step_tokens(self) -> int:
        # A step must take far less than a lease: the loop shows that it is alive between steps.
        return 8_192 if self.is_on_gpu else 512
