"""Writes a trained network as the released repository lays a checkpoint out: `thinker.model...`, one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from .network import Network, Shape
from .vocabulary import special_id


def write(network: Network, folder: Path) -> None:
    """Write `model.safetensors` (bfloat16), `config.json` and `generation_config.json`."""
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in _released(network)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(network.shape))
    _write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "eos_token_id": [special_id("<|im_end|>"), special_id("<|endoftext|>")],
            "pad_token_id": special_id("<|endoftext|>"),
        },
    )


def read(folder: Path, shape: Shape) -> Network:
    """Make a network of what ``write`` wrote, to train it further."""
    tensors = load_file(folder / "model.safetensors")
    network = Network(shape)
    # The written names are made from the network's own, so filling its views in the same order is exact.
    for name, view in _released(network):
        view.copy_(tensors[name])
    return network


def _released(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor under its released name, stacked experts taken apart."""
    for name, tensor in network.state_dict().items():
        if name.endswith("gate_up_proj"):
            for expert, pair in enumerate(tensor.cpu()):
                gate, up = pair.chunk(2)
                stem = f"thinker.model.{name.removesuffix('gate_up_proj')}experts.{expert}"
                yield f"{stem}.gate_proj.weight", gate
                yield f"{stem}.up_proj.weight", up
        elif name.endswith("mlp.down_proj"):
            for expert, down in enumerate(tensor.cpu()):
                stem = f"thinker.model.{name.removesuffix('down_proj')}experts.{expert}"
                yield f"{stem}.down_proj.weight", down
        else:
            yield f"thinker.{'' if name.startswith('lm_head') else 'model.'}{name}", tensor.cpu()


def _config(shape: Shape) -> dict[str, object]:
    text: dict[str, object] = {
        "model_type": "qwen3_omni_moe_text",
        "attention_bias": False,
        "attention_dropout": 0,
        "decoder_sparse_step": 1,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.moe_intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "mlp_only_layers": [],
        "moe_intermediate_size": shape.moe_intermediate_size,
        "norm_topk_prob": True,
        "num_attention_heads": shape.num_heads,
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": {
            "interleaved": True,
            "mrope_interleaved": True,
            "mrope_section": _mrope_section(shape.head_dim),
            "rope_type": "default",
            "type": "default",
        },
        "rope_theta": shape.rope_theta,
        "shared_expert_intermediate_size": 0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_qk_norm": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "dtype": "bfloat16",
        "enable_audio_output": False,
        "im_end_token_id": special_id("<|im_end|>"),
        "im_start_token_id": special_id("<|im_start|>"),
        "model_type": "qwen3_omni_moe",
        "thinker_config": {
            "model_type": "qwen3_omni_moe_thinker",
            "audio_end_token_id": special_id("<|audio_end|>"),
            "audio_start_token_id": special_id("<|audio_start|>"),
            "audio_token_id": special_id("<|audio_pad|>"),
            "image_token_id": special_id("<|image_pad|>"),
            "video_token_id": special_id("<|video_pad|>"),
            "text_config": text,
            "tie_word_embeddings": False,
        },
    }


def _mrope_section(head_dim: int) -> list[int]:
    """Split the rotary pairs as the release does: a third each for height and width, the rest for time."""
    third = head_dim // 2 // 3
    return [head_dim // 2 - 2 * third, third, third]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
