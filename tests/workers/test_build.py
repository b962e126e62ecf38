from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import torch

from thinkstream_client.errors import ConfigError
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_workers import host_memory
from thinkstream_workers.batch import Batch
from thinkstream_workers.buckets import Bucket, usual_buckets
from thinkstream_workers.build import build_engine
from thinkstream_workers.engine import Engine
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.runner import ModelRunner

TOKEN_BYTES = 2 * 2 * 8 * 4  # keys and values, layers, one head's width, float32


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    return thinker_of(max_context=128)


def thinker_of(max_context: int) -> Thinker:
    config = ThinkerConfig(
        vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=16, num_experts=0, num_experts_per_tok=0, moe_intermediate_size=0,
        decoder_sparse_step=1, norm_topk_prob=True, rope_theta=10_000.0, rms_norm_eps=1e-6,
        max_position_embeddings=max_context,
    )  # fmt: skip
    return random_thinker(config, device="cpu", dtype=torch.float32)


def engine_of(thinker: Thinker, config: EngineConfig) -> Engine:
    return build_engine(
        thinker, config, num_valid_ids=32, inbox=Inbox(), outbox=Outbox(),
        announce=lambda _: None, on_turn=lambda: None,
    )  # fmt: skip


def test_blocks_are_counted_or_bought(thinker: Thinker) -> None:
    assert engine_of(thinker, EngineConfig(num_blocks=20)).load.num_blocks == 20
    bought = EngineConfig(kv_memory_bytes=8 * 40 * TOKEN_BYTES + 1, block_size=8)
    assert engine_of(thinker, bought).load.num_blocks == 40


def test_an_idle_engine_rehearses_what_is_usual_for_its_limits(
    thinker: Thinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[Bucket] = []

    def rehearse(self: ModelRunner, batch: Batch, bucket: Bucket) -> bool:
        rehearsed.append(bucket)
        return False

    monkeypatch.setattr(ModelRunner, "rehearse", rehearse)
    engine = engine_of(thinker, EngineConfig(num_blocks=20, slots=3, step_tokens=256, max_context=100))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    while not engine.is_rehearsed and thread.is_alive():
        time.sleep(0.01)
    engine.stop()
    thread.join()
    assert rehearsed == usual_buckets(3, 256, 100)


def test_a_cpu_gives_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    thinker = thinker_of(max_context=1_024)

    def num_blocks(free_bytes: int, **settings: Any) -> int:
        monkeypatch.setattr(host_memory, "free_bytes", lambda: free_bytes)
        return engine_of(thinker, EngineConfig(**settings)).load.num_blocks

    least = (64 << 20) // (16 * TOKEN_BYTES)
    assert num_blocks(0) == least
    long = {"slots": 4_096, "step_tokens": 4_096}
    assert num_blocks(512 << 20, **long) == 2 * least
    assert num_blocks(1024 << 20, machine_share=0.5, **long) == 2 * least
    assert num_blocks(1 << 40, slots=1_024) == 1_024 * 1_024 // 16
    assert num_blocks(1 << 40, kv_memory_bytes=16 * TOKEN_BYTES) == 1


def test_the_context_is_the_models_unless_less_was_asked_for(thinker: Thinker) -> None:
    assert engine_of(thinker, EngineConfig()).max_context == 128
    assert engine_of(thinker, EngineConfig(max_context=100)).max_context == 100


def test_a_small_cache_cuts_the_context_and_says_so(
    thinker: Thinker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert engine_of(thinker, EngineConfig(num_blocks=4)).max_context == 64
        assert engine_of(thinker, EngineConfig(num_blocks=7)).max_context == 64
    assert caplog.text.count("cuts the context of 128 tokens at 64") == 2


def test_a_context_that_cannot_be_held_is_refused(thinker: Thinker) -> None:
    with pytest.raises(ConfigError, match="max_context: got 129, allowed: up to 128"):
        engine_of(thinker, EngineConfig(max_context=129))
    with pytest.raises(ConfigError, match="max_context: got 100, allowed: up to 64"):
        engine_of(thinker, EngineConfig(max_context=100, num_blocks=4))


def test_memory_for_less_than_a_block_is_refused(thinker: Thinker) -> None:
    with pytest.raises(ConfigError, match="kv_memory_bytes: got 100, allowed: at least 2048"):
        engine_of(thinker, EngineConfig(kv_memory_bytes=100))


def test_memory_that_there_is_not_is_refused_in_one_line(
    thinker: Thinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(config: ThinkerConfig, **settings: Any) -> KVCache:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 16 TiB")

    monkeypatch.setattr(KVCache, "allocate", allocate)
    with pytest.raises(ConfigError, match=r"KV cache of 4 blocks of 16 tokens: .* \(CUDA out of memory\.\)$"):
        engine_of(thinker, EngineConfig(num_blocks=4))
