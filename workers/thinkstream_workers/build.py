"""Puts an engine together round a loaded Thinker."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch

from thinkstream_client.errors import ConfigError
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker

from . import host_memory
from .batcher import Batcher
from .block_manager import BlockManager
from .buckets import usual_buckets
from .device_memory import reserve_bytes
from .engine import Engine
from .engine_config import EngineConfig
from .mailboxes import Inbox, Outbox
from .orders import JobKey
from .pacing import Pace
from .rehearsal import Rehearsal
from .runner import ModelRunner
from .step_graphs import CudaCapture

logger = logging.getLogger(__name__)

_CPU_KV_MIN_BYTES = 64 << 20
_CPU_KV_SHARE = 0.25
"""Of what is free once the weights are there; the rest is for the activations and for other programs."""


def build_engine(
    thinker: Thinker,
    config: EngineConfig,
    *,
    num_valid_ids: int,
    inbox: Inbox,
    outbox: Outbox,
    announce: Callable[[JobKey | None], None],
    on_turn: Callable[[], None],
    agree_context: Callable[[int], int] | None = None,
) -> Engine:
    """Allocates the KV cache and returns an engine ready to ``run``.

    Args:
        thinker: The model, on its device.
        config: The engine's limits.
        num_valid_ids: Vocabulary ids that the tokenizer knows, from 0.
        inbox: Where orders come from.
        outbox: Where tokens and ends go.
        announce: See ``Engine``.
        on_turn: See ``Engine``.
        agree_context: Told the context that there is room for; returns the one to serve, or raises.

    Raises:
        ConfigError: The context asked for is longer than the model's or than the KV cache, or there is no
            memory for a cache.
    """
    num_blocks = config.num_blocks or _affordable_blocks(thinker, config)
    max_context = _max_context(thinker, config, num_blocks * config.block_size)
    if agree_context is not None:
        max_context = agree_context(max_context)
    kv = _allocated(thinker, num_blocks, config.block_size)
    batcher = Batcher(
        BlockManager(num_blocks, config.block_size),
        max_num_seqs=config.slots,
        max_num_batched_tokens=config.step_tokens,
        max_context=max_context,
    )
    logger.info(
        "KV cache: %d blocks of %d tokens, context of up to %d tokens, up to %d sequences at once",
        num_blocks, config.block_size, max_context, config.slots,
    )  # fmt: skip
    runner = ModelRunner(
        thinker,
        kv,
        num_valid_ids=num_valid_ids,
        max_num_seqs=config.slots,
        max_context=max_context,
        capture=CudaCapture() if thinker.is_capturable else None,
    )
    return Engine(
        batcher=batcher,
        runner=runner,
        inbox=inbox,
        outbox=outbox,
        pace=Pace(),
        announce=announce,
        on_turn=on_turn,
        run_ahead=thinker.device.type != "cpu" if config.run_ahead is None else config.run_ahead,
        rehearsal=Rehearsal(runner, usual_buckets(config.slots, config.step_tokens, max_context)),
    )


def _allocated(thinker: Thinker, num_blocks: int, block_size: int) -> KVCache:
    try:
        return KVCache.allocate(
            thinker.config,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=thinker.dtype,
            device=thinker.device,
        )
    except RuntimeError as error:  # torch's, on a CPU and on a GPU
        raise ConfigError(
            f"no memory for a KV cache of {num_blocks} blocks of {block_size} tokens: give it less with "
            f"--kv-memory ({str(error).splitlines()[0]})"
        ) from error


def _affordable_blocks(thinker: Thinker, config: EngineConfig) -> int:
    block_bytes = thinker.config.kv_bytes(config.block_size, thinker.dtype.itemsize)
    num_bytes = config.kv_memory_bytes
    if num_bytes is None and thinker.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(thinker.device)
        num_bytes = free_bytes - reserve_bytes(thinker.config, config, free_bytes, thinker.dtype.itemsize)
    elif num_bytes is None:
        share_bytes = int(host_memory.free_bytes() * config.machine_share * _CPU_KV_SHARE)
        context = min(config.max_context or math.inf, thinker.config.max_position_embeddings)
        useful_bytes = config.slots * math.ceil(context / config.block_size) * block_bytes
        num_bytes = max(_CPU_KV_MIN_BYTES, min(share_bytes, useful_bytes))
    if num_bytes < block_bytes:
        raise ConfigError(
            f"kv_memory_bytes: got {num_bytes}, allowed: at least {block_bytes}, the size of one block"
        )
    return num_bytes // block_bytes


def _max_context(thinker: Thinker, config: EngineConfig, num_kv_tokens: int) -> int:
    trained = thinker.config.max_position_embeddings
    limit = min(trained, num_kv_tokens)
    if config.max_context is None:
        if limit < trained:
            # A power of two: the same again with a little more or less memory.
            limit = 1 << (limit.bit_length() - 1)
            logger.warning("the KV cache cuts the context of %d tokens at %d", trained, limit)
        return limit
    if config.max_context > limit:
        raise ConfigError(
            f"max_context: got {config.max_context}, allowed: up to {limit} "
            f"(the model's is {trained}, the KV cache holds {num_kv_tokens}: give it more with --kv-memory)"
        )
    return config.max_context
