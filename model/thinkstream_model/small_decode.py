"""A decode step of a small batch, a row or two, in seven launches a layer: for speed, not for exactness.

What the Thinker does operation by operation, with the norms and the residual's additions done inside the
products on the way: by far the most of such a step is reading weights, and each launch between two
products costs the time of a few megabytes. The products run on other units and in another order than those
of ``TritonOps``, so a token may depend on how many others shared its step.

T rows, D hidden width, S rows whose logits are wanted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ThinkerConfig
from .exchange import LocalExchange
from .inputs import StepInputs
from .kernels.attention_small import attend_small
from .kernels.dense_small import linear_add_small, norm_linear_small
from .kernels.experts_small import down_small, gate_up_small
from .kernels.router_small import norm_route_small
from .kv_cache import KVCache
from .ops import Routing
from .parameters import DenseWeights, LayerWeights, MoeWeights, ThinkerWeights
from .rope import Rotation
from .swiglu import silu_and_multiply


def small_decode(
    weights: ThinkerWeights,
    inputs: StepInputs,
    kv: KVCache,
    exchange: LocalExchange,
    rotary: Rotation,
    arrivals_X: Tensor,
) -> Tensor:
    """Compute one step.

    Args:
        weights: The Thinker's.
        inputs: The step's tokens, ``experts_small.MAX_ROWS`` at most.
        kv: The cache, changed in place.
        exchange: Names the experts' slots; where rows would have to travel, this is not the way.
        rotary: Rotation of every position.
        arrivals_X: See ``attend_small``.

    Returns:
        Logits of ``inputs.output_rows_S``, [S, V], float32.
    """
    config, eps = weights.config, weights.config.rms_norm_eps
    residual_TD = F.embedding(inputs.input_ids_T, weights.embedding_VD)
    for number, layer in enumerate(weights.layers):
        qkv_TQ, _ = norm_linear_small(residual_TD, layer.input_norm_D, layer.attention.qkv_QD, eps)
        heads_TQ = attend_small(
            qkv_TQ, layer.attention.q_norm_C, layer.attention.k_norm_C, rotary, inputs,
            kv.keys_NSHC[number], kv.values_NSHC[number], eps, arrivals_X=arrivals_X,
        )  # fmt: skip
        residual_TD = linear_add_small(heads_TQ, layer.attention.out_DQ, residual_TD)
        if isinstance(layer.mlp, MoeWeights):
            residual_TD = _add_experts(config, exchange, number, layer, layer.mlp, residual_TD)
        else:
            residual_TD = _add_mlp(config, layer, layer.mlp, residual_TD)
    residual_SD = residual_TD.index_select(0, inputs.output_rows_S)
    return norm_linear_small(residual_SD, weights.norm_D, weights.lm_head_VD, eps, out_dtype=torch.float32)[0]


def _add_experts(
    config: ThinkerConfig,
    exchange: LocalExchange,
    number: int,
    layer: LayerWeights,
    mlp: MoeWeights,
    residual_TD: Tensor,
) -> Tensor:
    hidden_TD, expert_ids_TK, weights_TK = norm_route_small(
        residual_TD, layer.post_attention_norm_D, mlp.router_ED, config.rms_norm_eps,
        config.num_experts_per_tok, renormalize=config.norm_topk_prob,
    )  # fmt: skip
    hidden_TD, slots_TK, _ = exchange.dispatch(number, hidden_TD, Routing(expert_ids_TK, weights_TK))
    inner_PI = gate_up_small(hidden_TD, mlp.gate_up_E2ID, slots_TK)
    return down_small(inner_PI, mlp.down_EDI, slots_TK, weights_TK, residual_TD)


def _add_mlp(config: ThinkerConfig, layer: LayerWeights, mlp: DenseWeights, residual_TD: Tensor) -> Tensor:
    gate_up_T2I, _ = norm_linear_small(
        residual_TD, layer.post_attention_norm_D, mlp.gate_up_2ID, config.rms_norm_eps
    )
    return linear_add_small(silu_and_multiply(gate_up_T2I), mlp.down_DI, residual_TD)
