"""Is the full size right? Errors of the kernels and of plain torch, both in bfloat16, against float32.

    python -m infra.bench.gpu.correct --layers 48

The reference has the same bfloat16 weights, made float32 layer by layer, since all at once would not fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.parameters import AttentionWeights, DenseWeights, LayerWeights, MoeWeights
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_model.torch_ops import TorchOps
from thinkstream_model.triton_ops import TritonOps

from .shape import released_config

_BLOCK_SIZE = 16


def main() -> None:
    """Print one line of JSON per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    config = released_config(args.layers)
    weights = random_thinker(config, device="cuda", dtype=torch.bfloat16).weights
    device = weights.embedding_VD.device
    upcast = dataclasses.replace(
        weights,
        embedding_VD=weights.embedding_VD.float(),
        layers=cast("tuple[LayerWeights, ...]", _Upcast(weights.layers)),
        norm_D=weights.norm_D.float(),
        lm_head_VD=weights.lm_head_VD.float(),
    )
    expected_SV = _logits(Thinker(upcast, TorchOps(config, device, exact=True)), args.tokens)
    for name, ops in (
        ("kernels", TritonOps(config, device)),
        ("kernels, fast", TritonOps(config, device, fast_small_batch=True)),
        ("plain torch", TorchOps(config, device, exact=False)),
    ):
        for num_rows in (args.tokens, 8):
            logits_SV = _logits(Thinker(weights, ops), num_rows)
            print(json.dumps({"path": name, "rows": num_rows, **_errors(logits_SV, expected_SV[:num_rows])}))


class _Upcast:
    """Layers in float32, each made when it is asked for and gone when it was used."""

    def __init__(self, layers: tuple[LayerWeights, ...]) -> None:
        self._layers = layers

    def __getitem__(self, place: int | slice) -> Any:
        layers = self._layers[place]
        return _Upcast(layers) if isinstance(layers, tuple) else _float32(layers)

    def __iter__(self) -> Iterator[LayerWeights]:
        return (_float32(layer) for layer in self._layers)


def _float32(weights: Any) -> Any:
    if isinstance(weights, Tensor):
        return weights.float()
    assert isinstance(weights, LayerWeights | AttentionWeights | MoeWeights | DenseWeights)
    changes = {field.name: _float32(getattr(weights, field.name)) for field in dataclasses.fields(weights)}
    return dataclasses.replace(weights, **changes)


def _logits(thinker: Thinker, num_tokens: int) -> Tensor:
    """Logits of every token of one random prompt, the same each time."""
    num_blocks = -(-num_tokens // _BLOCK_SIZE)
    kv = KVCache.allocate(
        thinker.config,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        dtype=thinker.dtype,
        device=thinker.device,
    )
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(0, thinker.config.vocab_size, (4_096,), generator=generator)[:num_tokens]
    places_T = torch.arange(num_tokens, device=thinker.device)
    inputs = StepInputs(
        input_ids_T=ids_T.to(thinker.device),
        positions_T=places_T,
        slot_mapping_T=places_T,
        cu_seqlens_q_B1=torch.tensor([0, num_tokens], dtype=torch.int32, device=thinker.device),
        context_lens_B=torch.tensor([num_tokens], dtype=torch.int32, device=thinker.device),
        block_tables_BM=torch.arange(num_blocks, dtype=torch.int32, device=thinker.device).unsqueeze(0),
        output_rows_S=places_T,
        query_lens=(num_tokens,),
        context_lens=(num_tokens,),
    )
    return thinker.forward(inputs, kv)


def _errors(logits_SV: Tensor, expected_SV: Tensor) -> dict[str, float]:
    expected_SV = expected_SV.double()
    error_SV = logits_SV.double() - expected_SV
    error = (error_SV.square().sum() / expected_SV.square().sum()).sqrt()
    agreement = (logits_SV.argmax(-1) == expected_SV.argmax(-1)).float().mean()
    return {"relative_error": float(error), "top1_agreement": float(agreement)}


if __name__ == "__main__":
    main()
