"""Is the full size right? Errors of the kernels and of plain torch, both in bfloat16, against float32.

    python -m infra.bench.gpu.correct --layers 48

The reference has the same bfloat16 weights, made float32 layer by layer, since all at once would not fit.
First whole logits are compared, then each layer by itself from equal inputs: its error over the rows whose
experts are the reference's, and how many rows' experts are others, which near-ties explain.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.exchange import LocalExchange
from thinkstream_model.ops import Dispatched, Ops, Routing
from thinkstream_model.parameters import (
    AttentionWeights,
    DenseWeights,
    LayerWeights,
    MoeWeights,
    ThinkerWeights,
)
from thinkstream_model.thinker import Thinker, random_weights
from thinkstream_model.torch_ops import TorchOps
from thinkstream_model.triton_ops import TritonOps

from .prompts import whole_prompts
from .shape import released_config

_Weights = ThinkerWeights | LayerWeights | AttentionWeights | MoeWeights | DenseWeights


def main() -> None:
    """Print one line of JSON per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    config = released_config(args.layers)
    weights = random_weights(config, device="cuda", dtype=torch.bfloat16)
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
        ("plain torch", TorchOps(config, device, exact=False)),
    ):
        for num_rows in (args.tokens, 8):
            logits_SV = _logits(Thinker(weights, ops), num_rows)
            print(json.dumps({"path": name, "rows": num_rows, **_errors(logits_SV, expected_SV[:num_rows])}))
    for name, ops in (
        ("kernels", TritonOps(config, device)),
        ("plain torch", TorchOps(config, device, exact=False)),
    ):
        print(json.dumps({"path": name, "rows": args.tokens, **_layer_errors(weights, ops, args.tokens)}))


class _Choices(LocalExchange):
    """Remembers the experts of the last layer."""

    expert_ids_TK: Tensor

    def dispatch(self, layer: int, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """See ``LocalExchange.dispatch``."""
        self.expert_ids_TK = routing.expert_ids_TK.long().sort(dim=-1).values
        return super().dispatch(layer, hidden_TD, routing)


def _layer_errors(weights: ThinkerWeights, ops: Ops, num_tokens: int) -> dict[str, float]:
    """Each layer from the rows that the reference's layer before it gave, the same for both."""
    config, device = weights.config, weights.embedding_VD.device
    exact = TorchOps(config, device, exact=True)
    eye_DD = torch.eye(config.hidden_size, dtype=torch.bfloat16, device=device)
    rows_TD = weights.embedding_VD[:num_tokens]
    errors: list[float] = []
    num_others = 0
    for layer in weights.layers:
        # A Thinker of this layer alone, whose tokens are the rows and whose logits are its normed output.
        one = dataclasses.replace(
            weights,
            config=dataclasses.replace(config, num_layers=1, vocab_size=num_tokens),
            embedding_VD=rows_TD,
            layers=(layer,),
            lm_head_VD=eye_DD,
        )
        choices, expected_choices = _Choices(ops), _Choices(exact)
        out_TD = _logits(Thinker(one, ops, choices), num_tokens)
        expected_TD = _logits(Thinker(_float32(one), exact, expected_choices), num_tokens)
        is_same_T = (choices.expert_ids_TK == expected_choices.expert_ids_TK).all(dim=-1)
        num_others += int((~is_same_T).sum())
        errors.append(_errors(out_TD[is_same_T], expected_TD[is_same_T])["relative_error"])
        rows_TD = expected_TD.to(torch.bfloat16)
    return {
        "worst_layer_error": max(errors),
        "mean_layer_error": sum(errors) / len(errors),
        "share_of_rows_with_other_experts": num_others / len(weights.layers) / num_tokens,
    }


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
    if isinstance(weights, tuple):
        return tuple(_float32(part) for part in weights)  # pyright: ignore[reportUnknownVariableType]
    if not dataclasses.is_dataclass(weights) or isinstance(weights, ThinkerConfig):
        return weights
    assert isinstance(weights, _Weights)
    changes = {field.name: _float32(getattr(weights, field.name)) for field in dataclasses.fields(weights)}
    return dataclasses.replace(weights, **changes)


def _logits(thinker: Thinker, num_tokens: int) -> Tensor:
    """Logits of every token of one random prompt, the same each time."""
    generator = torch.Generator().manual_seed(0)
    # One layer alone has as many ids as rows: a permutation of them does.
    ids_T = torch.randperm(thinker.config.vocab_size, generator=generator)[:num_tokens]
    inputs, kv = whole_prompts(thinker, ids_T.to(thinker.device).unsqueeze(0), every_row=True)
    return thinker.forward(inputs, kv)


def _errors(logits_SV: Tensor, expected_SV: Tensor) -> dict[str, float]:
    expected_SV = expected_SV.double()
    error_SV = logits_SV.double() - expected_SV
    error = (error_SV.square().sum() / expected_SV.square().sum()).sqrt()
    agreement = (logits_SV.argmax(-1) == expected_SV.argmax(-1)).float().mean()
    return {"relative_error": float(error), "top1_agreement": float(agreement)}


if __name__ == "__main__":
    main()
