"""Destinations share the memory that the forward pass reads."""

# torch's stubs leave `tolist` untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.parameters import DenseWeights, MoeWeights, ThinkerWeights


def _runs(numbers: Tensor) -> list[int]:
    """The numbers without their repetitions."""
    return [int(number) for number, _ in itertools.groupby(numbers.tolist())]


def test_destinations_are_views_and_cover_everything(tiny_config: ThinkerConfig) -> None:
    weights = ThinkerWeights.empty(tiny_config, "cpu", torch.float32)
    destinations = weights.named_destinations()
    for number, tensor in enumerate(destinations.values(), start=1):
        tensor.fill_(number)
    numbers = {name: number for number, name in enumerate(destinations, start=1)}
    assert sum(tensor.numel() for tensor in destinations.values()) == tiny_config.num_parameters

    layer = weights.layers[0]
    names = [numbers[f"layers.0.self_attn.{x}_proj.weight"] for x in "qkv"]
    assert _runs(layer.attention.qkv_QD[:, 0]) == names
    assert isinstance(layer.mlp, MoeWeights)
    assert _runs(layer.mlp.gate_up_E2ID.flatten()) == [numbers["layers.0.mlp.experts.gate_up_proj"]]
    dense = weights.layers[2].mlp
    assert isinstance(dense, DenseWeights)
    gate_up = [numbers["layers.2.mlp.gate_proj.weight"], numbers["layers.2.mlp.up_proj.weight"]]
    assert _runs(dense.gate_up_2ID[:, 0]) == gate_up


def test_cache_memory(tiny_config: ThinkerConfig) -> None:
    kv = KVCache.allocate(tiny_config, num_blocks=3, block_size=16, dtype=torch.bfloat16, device="cpu")
    assert (kv.num_blocks, kv.block_size) == (3, 16)
    num_bytes = sum(t.numel() * t.element_size() for t in (*kv.keys_NSHC, *kv.values_NSHC))
    assert num_bytes == tiny_config.kv_bytes(3 * 16, torch.bfloat16.itemsize)
    assert all(not tensor.any() for tensor in kv.values_NSHC)
