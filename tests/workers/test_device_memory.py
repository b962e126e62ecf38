from __future__ import annotations

from dataclasses import replace

import pytest

from thinkstream_model.config import ThinkerConfig
from thinkstream_workers.device_memory import reserve_bytes
from thinkstream_workers.engine_config import EngineConfig

RELEASED = ThinkerConfig(
    vocab_size=152_064, hidden_size=2_048, num_layers=48, num_heads=32, num_kv_heads=4, head_dim=128,
    intermediate_size=768, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    decoder_sparse_step=1, norm_topk_prob=True, rope_theta=1e6, rms_norm_eps=1e-6,
    max_position_embeddings=65_536,
)  # fmt: skip
TOKEN_BYTES = 2 * 48 * 4 * 128 * 2
FREE_BYTES = 23_200_000_000  # of 80 GB, once the weights are there
LIMITS = EngineConfig(slots=32, step_tokens=8_192, max_context=32_768)


def reserve(limits: EngineConfig, free_bytes: int = FREE_BYTES) -> int:
    return reserve_bytes(RELEASED, limits, free_bytes, 2)


@pytest.mark.parametrize(
    ("limits", "least"),
    [(LIMITS, 210_000), (replace(LIMITS, slots=256, max_context=8_192), 205_000)],
)
def test_an_80_gb_card_has_room_for_about_210_000_tokens(limits: EngineConfig, least: int) -> None:
    assert least <= (FREE_BYTES - reserve(limits)) // TOKEN_BYTES <= 225_000


def test_longer_contexts_and_larger_steps_take_more() -> None:
    assert (
        reserve(LIMITS)
        < reserve(replace(LIMITS, max_context=65_536))
        == reserve(replace(LIMITS, max_context=None))
    )
    assert reserve(LIMITS) < reserve(replace(LIMITS, step_tokens=16_384))
    # Partial results of attention, outside of the graphs' memory and twice within: float32 and two sums.
    partials = 32 * (16_384 // 256) * 32 * (128 + 2) * 4
    assert reserve(LIMITS) - reserve(replace(LIMITS, max_context=16_384)) == 3 * partials


def test_three_quarters_of_what_is_free_are_left_in_any_case() -> None:
    assert reserve(LIMITS, 1 << 30) == 1 << 28
    assert reserve(replace(LIMITS, slots=4_096)) == FREE_BYTES // 4
