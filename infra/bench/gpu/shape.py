"""The released Thinker's shape, and what a decode step of it must read.

A step reads, once each: every matrix outside the experts, the experts that any of its rows chose, the keys
and values of its rows, and the head. Nothing else comes near in size.
"""

from __future__ import annotations

from typing import Any

from thinkstream_model.config import ThinkerConfig

RELEASED_SHAPE: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 65536,
    "rope_theta": 1000000.0,
    "rope_scaling": {"rope_type": "default", "interleaved": True, "mrope_section": [24, 20, 20]},
}
"""``thinker_config.text_config`` of the released checkpoint."""


def released_config(num_layers: int = 48) -> ThinkerConfig:
    """The released shape, with fewer layers where asked for."""
    text = {**RELEASED_SHAPE, "num_hidden_layers": num_layers}
    return ThinkerConfig.from_json({"thinker_config": {"text_config": text}})


def step_bytes(config: ThinkerConfig, *, num_hit_experts: float, num_keys: int) -> float:
    """Bytes that a decode step in bfloat16 must read.

    Args:
        config: The shape.
        num_hit_experts: Distinct experts per layer that the step's rows chose, on average.
        num_keys: Keys of all rows together.
    """
    hidden, layers = config.hidden_size, config.num_layers
    dense = hidden * (2 * config.q_size + 2 * config.kv_size + config.num_experts)
    experts = num_hit_experts * 3 * config.moe_intermediate_size * hidden
    head = config.vocab_size * hidden
    return 2.0 * (layers * (dense + experts + 2 * num_keys * config.kv_size) + head)
