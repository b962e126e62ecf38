"""What one replica is told at its start."""

from __future__ import annotations

from dataclasses import dataclass

from thinkstream_client.errors import ConfigError
from thinkstream_client.keys import check_name
from thinkstream_client.settings import RedisSettings

from .engine_config import EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """The settings of one replica: who it is, where Redis is, which model it serves and how much at once.

    Attributes:
        redis: The server and the namespace that it serves.
        name: The replica's name; its sessions and its Ray actor carry it.
        model: Folder of a checkpoint, ``demo`` for the one in the package, or ``random:CONFIG`` for random
            weights in the shape of a ``config.json``.
        device: Where the model runs, in torch's words.
        dtype: Type of the weights and of the arithmetic; None is float32 on a CPU, else the checkpoint's own.
        slots: Jobs at once.
        lease_ms: How long the replica may be silent before its jobs go to others.
        max_context: Tokens of prompt and result together; None is the model's own limit.
        max_num_batched_tokens: Tokens of one step, prefill and decode together; None is 512 on a CPU and
            2048 elsewhere, or the slots where they are more.
        kv_memory_bytes: Memory for keys and values; None leaves the choice to the engine.
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
    max_num_batched_tokens: int | None = None
    kv_memory_bytes: int | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        _at_least("slots", self.slots, 1)
        _at_least("lease_ms", self.lease_ms, 100)
        _at_least("max_context", self.max_context, 2)
        _at_least("max_num_batched_tokens", self.max_num_batched_tokens, self.slots)
        _at_least("kv_memory_bytes", self.kv_memory_bytes, 1)
        _at_least("num_threads", self.num_threads, 1)

    @property
    def namespace(self) -> str:
        """First part of every key."""
        return self.redis.namespace

    @property
    def engine(self) -> EngineConfig:
        """The limits of the replica's engine: a slot is a sequence."""
        return EngineConfig(
            max_num_seqs=self.slots,
            max_num_batched_tokens=self.max_num_batched_tokens or max(self.slots, self._usual_step_tokens),
            kv_memory_bytes=self.kv_memory_bytes,
            max_context=self.max_context,
        )

    @property
    def _usual_step_tokens(self) -> int:
        # A step must take far less than a lease: the loop shows that it is alive between steps.
        return 512 if self.device == "cpu" else 2_048


def _at_least(field: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{field}: got {value}, allowed: at least {low}")
