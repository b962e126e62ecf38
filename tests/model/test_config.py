"""The config: released and brief's shape, spellings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.errors import ConfigError
from thinkstream_model.parameters import ThinkerWeights

RELEASED: dict[str, Any] = {
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
    "shared_expert_intermediate_size": 0,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_scaling": {
        "type": "default",
        "interleaved": True,
        "mrope_interleaved": True,
        "mrope_section": [24, 20, 20],
    },
    "max_position_embeddings": 65536,
    "tie_word_embeddings": False,
}
BRIEF: dict[str, Any] = {
    **RELEASED,
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "num_experts": 64,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 2816,
    "intermediate_size": 11008,
    "decoder_sparse_step": 2,
    "max_position_embeddings": 32768,
}


def test_released_shape_on_the_meta_device() -> None:
    config = ThinkerConfig.from_json({"thinker_config": {"text_config": RELEASED}, "talker_config": {}})
    assert (config.num_layers, config.q_size, config.kv_size, config.num_moe_layers) == (48, 4096, 512, 48)
    assert config.mrope_section == (24, 20, 20)
    assert config.num_parameters == 30_532_646_912
    destinations = ThinkerWeights.empty(config, "meta", torch.bfloat16).named_destinations()
    assert sum(tensor.numel() for tensor in destinations.values()) == 30_532_646_912
    assert destinations["layers.47.mlp.experts.gate_up_proj"].shape == (128, 1536, 2048)


def test_briefs_shape() -> None:
    config = ThinkerConfig.from_json(BRIEF)
    assert [layer for layer in range(40) if config.is_moe(layer)] == list(range(1, 40, 2))
    assert config.q_size == config.hidden_size
    destinations = ThinkerWeights.empty(config, "meta", torch.bfloat16).named_destinations()
    assert sum(tensor.numel() for tensor in destinations.values()) == config.num_parameters
    assert destinations["layers.0.mlp.gate_proj.weight"].shape == (11008, 4096)
    assert "layers.0.mlp.gate.weight" not in destinations


def test_description_shows_the_resolved_shape() -> None:
    lines = ThinkerConfig.from_json(BRIEF).describe().splitlines()
    table = {line[:16].strip(): line[16:] for line in lines}
    assert table["layers"] == "40 (1, 3, 5, ... 39 with experts)"
    assert table["heads"] == "32 query, 8 key and value, 128 wide"
    assert table["experts"] == "64, 4 per token"
    assert table["dense width"] == "11008"
    assert table["parameters"].startswith("49,9")


@pytest.mark.parametrize("document", [RELEASED, {"text_config": RELEASED}], ids=["bare", "thinker"])
def test_where_the_text_config_may_stand(document: dict[str, Any]) -> None:
    expected = ThinkerConfig.from_json({"thinker_config": {"text_config": RELEASED}})
    assert ThinkerConfig.from_json(document) == expected


def test_both_spellings_of_the_rotary_settings() -> None:
    newer = {k: v for k, v in RELEASED.items() if not k.startswith("rope_")}
    newer["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [24, 20, 20],
    }
    assert ThinkerConfig.from_json(newer) == ThinkerConfig.from_json(RELEASED)


@pytest.mark.parametrize(
    "missing", ["head_dim", "hidden_size", "num_attention_heads", "moe_intermediate_size"]
)
def test_a_missing_size_is_an_error_and_never_a_guess(missing: str) -> None:
    without = {k: v for k, v in BRIEF.items() if k != missing}
    with pytest.raises(ConfigError, match=missing):
        ThinkerConfig.from_json(without)


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "decoder_sparse_step",
        "norm_topk_prob",
        "rms_norm_eps",
        "max_position_embeddings",
    ],
)
def test_a_missing_field_is_named_with_its_file(field: str, tmp_path: Path) -> None:
    text = {k: v for k, v in RELEASED.items() if k != field}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"thinker_config": {"text_config": text}}))
    with pytest.raises(ConfigError) as raised:
        ThinkerConfig.from_json(tmp_path)
    assert raised.value.file == str(file)
    assert raised.value.field == f"thinker_config.text_config.{field}"
    assert raised.value.found == "nothing"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_size": "2048"}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 127}, "head_dim"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size"),
        ({"decoder_sparse_step": 2, "intermediate_size": 0}, "intermediate_size"),
        ({"mlp_only_layers": [48]}, "mlp_only_layers"),
        ({"mlp_only_layers": 3}, "mlp_only_layers"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.type"),
        ({"rope_scaling": {"mrope_section": [24, 20, 10]}}, "mrope_section"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"rope_theta": 0, "rope_scaling": None}, "rope_theta"),
    ],
)
def test_bad_values(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ThinkerConfig.from_json({**RELEASED, **changes})
    assert raised.value.field == field
    assert raised.value.file == "config.json"


@pytest.mark.parametrize("content", ["{", "[]", None], ids=["broken", "list", "missing"])
def test_files_that_are_no_config(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        ThinkerConfig.from_json(tmp_path)


def test_tied_output_matrix_is_the_embedding() -> None:
    config = ThinkerConfig.from_json({**RELEASED, "tie_word_embeddings": True})
    weights = ThinkerWeights.empty(config, "meta", torch.bfloat16)
    assert weights.lm_head_VD is weights.embedding_VD
    destinations = weights.named_destinations()
    assert "lm_head.weight" not in destinations
    assert sum(tensor.numel() for tensor in destinations.values()) == config.num_parameters
