"""The tensors of a Thinker, allocated where they will be used, and the names they go by.

A loader copies a checkpoint straight into ``ThinkerWeights.named_destinations()``; nothing else knows
both the names and the places. How files spell the names is the loader's business.

D hidden width, V vocabulary, E experts, I inner width, C width of a head, Q and K widths of all query
heads and of all key heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ThinkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """Attention of one layer; queries, keys and values lie in one matrix, in this order."""

    qkv_QD: Tensor
    q_norm_C: Tensor
    k_norm_C: Tensor
    out_DQ: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWeights:
    """A SwiGLU MLP; the rows of the gate come first."""

    gate_up_2ID: Tensor
    down_DI: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeWeights:
    """Router and stacked experts of one layer; the rows of each expert's gate come first."""

    router_ED: Tensor
    gate_up_E2ID: Tensor
    down_EDI: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer."""

    input_norm_D: Tensor
    attention: AttentionWeights
    post_attention_norm_D: Tensor
    mlp: DenseWeights | MoeWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkerWeights:
    """All of a Thinker. Where the config ties them, ``lm_head_VD`` is ``embedding_VD``."""

    config: ThinkerConfig
    embedding_VD: Tensor
    layers: tuple[LayerWeights, ...]
    norm_D: Tensor
    lm_head_VD: Tensor

    @classmethod
    def empty(cls, config: ThinkerConfig, device: torch.device | str, dtype: torch.dtype) -> ThinkerWeights:
        """Allocate every tensor, without values, on the device (``meta`` included)."""

        def new(*shape: int) -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        vocab, hidden = config.vocab_size, config.hidden_size
        embedding_VD = new(vocab, hidden)
        layers = tuple(
            LayerWeights(
                input_norm_D=new(hidden),
                attention=AttentionWeights(
                    qkv_QD=new(config.q_size + 2 * config.kv_size, hidden),
                    q_norm_C=new(config.head_dim),
                    k_norm_C=new(config.head_dim),
                    out_DQ=new(hidden, config.q_size),
                ),
                post_attention_norm_D=new(hidden),
                mlp=MoeWeights(
                    router_ED=new(config.num_experts, hidden),
                    gate_up_E2ID=new(config.num_experts, 2 * config.moe_intermediate_size, hidden),
                    down_EDI=new(config.num_experts, hidden, config.moe_intermediate_size),
                )
                if config.is_moe(layer)
                else DenseWeights(
                    gate_up_2ID=new(2 * config.intermediate_size, hidden),
                    down_DI=new(hidden, config.intermediate_size),
                ),
            )
            for layer in range(config.num_layers)
        )
        return cls(
            config=config,
            embedding_VD=embedding_VD,
            layers=layers,
            norm_D=new(hidden),
            lm_head_VD=embedding_VD if config.tie_word_embeddings else new(vocab, hidden),
        )

    def named_destinations(self) -> dict[str, Tensor]:
        """Where each tensor of a checkpoint goes, by its canonical name.

        The names are the released layout's without ``thinker.`` and ``model.``; the experts of a layer
        are stacked under ``mlp.experts.gate_up_proj`` [E, 2I, D] (gate rows first) and
        ``mlp.experts.down_proj`` [E, D, I]. Several names may be views into one tensor: fill them in
        place. Together they cover every parameter exactly once; a tied ``lm_head.weight`` has no entry.
        """
        named = {"embed_tokens.weight": self.embedding_VD, "norm.weight": self.norm_D}
        for number, layer in enumerate(self.layers):
            for name, tensor in self._of_layer(layer):
                named[f"layers.{number}.{name}"] = tensor
        if not self.config.tie_word_embeddings:
            named["lm_head.weight"] = self.lm_head_VD
        return named

    def _of_layer(self, layer: LayerWeights) -> Iterator[tuple[str, Tensor]]:
        config, attention, mlp = self.config, layer.attention, layer.mlp
        q_KD, k_KD, v_KD = torch.split(attention.qkv_QD, [config.q_size, config.kv_size, config.kv_size])
        yield "input_layernorm.weight", layer.input_norm_D
        yield "self_attn.q_proj.weight", q_KD
        yield "self_attn.k_proj.weight", k_KD
        yield "self_attn.v_proj.weight", v_KD
        yield "self_attn.q_norm.weight", attention.q_norm_C
        yield "self_attn.k_norm.weight", attention.k_norm_C
        yield "self_attn.o_proj.weight", attention.out_DQ
        yield "post_attention_layernorm.weight", layer.post_attention_norm_D
        if isinstance(mlp, MoeWeights):
            yield "mlp.gate.weight", mlp.router_ED
            yield "mlp.experts.gate_up_proj", mlp.gate_up_E2ID
            yield "mlp.experts.down_proj", mlp.down_EDI
        else:
            gate_ID, up_ID = mlp.gate_up_2ID.chunk(2)
            yield "mlp.gate_proj.weight", gate_ID
            yield "mlp.up_proj.weight", up_ID
            yield "mlp.down_proj.weight", mlp.down_DI
