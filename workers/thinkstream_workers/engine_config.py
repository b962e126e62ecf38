"""How much one engine takes on at once."""

from __future__ import annotations

from dataclasses import dataclass

from thinkstream_client.errors import ConfigError

MAX_SLOTS = 4_096
MAX_STEP_TOKENS = 1 << 17
MAX_CONTEXT = 1 << 24
MAX_KV_BYTES = 1 << 44
_MAX_BLOCK_SIZE = 1_024
_MAX_BLOCKS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of one engine.

    Attributes:
        slots: Sequences at once.
        step_tokens: Tokens of one step, prefill and decode together.
        block_size: Tokens per block of the KV cache.
        num_blocks: Blocks of the KV cache; None sizes it by ``kv_memory_bytes``.
        kv_memory_bytes: Memory for the KV cache; None is what is free on a GPU once the weights are there,
            less what steps of this size take while they run and their graphs, and a quarter of what is free
            on a CPU, where others live too: at least 64 MiB, and no more than ``slots`` sequences of full
            length need. Only without ``num_blocks``.
        machine_share: Part of a CPU's free memory that counts as free for this engine, in (0, 1].
        max_context: Tokens of prompt and result of one sequence; None is what the model was made for,
            or what the KV cache holds where that is less.
        run_ahead: Whether a step is launched before the tokens of the one before it are read; None is
            wherever the device works by itself, so not on a CPU.

    Raises:
        ConfigError: A value outside its range, or two that contradict each other.
    """

    slots: int = 32
    step_tokens: int = 2_048
    block_size: int = 16
    num_blocks: int | None = None
    kv_memory_bytes: int | None = None
    machine_share: float = 1.0
    max_context: int | None = None
    run_ahead: bool | None = None

    def __post_init__(self) -> None:
        check_range("slots", self.slots, 1, MAX_SLOTS)
        check_range("step_tokens", self.step_tokens, self.slots, MAX_STEP_TOKENS)
        check_range("block_size", self.block_size, 1, _MAX_BLOCK_SIZE)
        check_range("num_blocks", self.num_blocks, 1, _MAX_BLOCKS)
        check_range("kv_memory_bytes", self.kv_memory_bytes, 1, MAX_KV_BYTES)
        check_range("max_context", self.max_context, 2, MAX_CONTEXT)
        if not 0.0 < self.machine_share <= 1.0:
            raise ConfigError(f"machine_share: got {self.machine_share!r}, allowed: a number in (0, 1]")
        if self.num_blocks is not None and self.kv_memory_bytes is not None:
            raise ConfigError(
                f"kv_memory_bytes: got {self.kv_memory_bytes} beside num_blocks {self.num_blocks}, "
                "allowed: one of the two"
            )


def check_range(field: str, value: int | None, low: int, high: int) -> None:
    """Checks a setting that may be left out.

    Raises:
        ConfigError: It is no integer in [low, high].
    """
    if value is None:
        return
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{field}: got {value!r}, allowed: an integer in [{low}, {high}]")
