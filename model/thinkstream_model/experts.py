"""A layer's mixture of experts: the router's choice, the way to the experts and back.

T rows, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .config import ThinkerConfig
from .ops import Addend, Exchange, Ops, Routing
from .parameters import MoeWeights


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses experts: softmax over all of them, then the top k."""

    ops: Ops
    config: ThinkerConfig

    def __call__(self, hidden_TD: Tensor, weights: MoeWeights) -> Routing:
        """Choose each row's experts and their shares."""
        return self.ops.route(
            hidden_TD,
            weights.router_ED,
            self.config.num_experts_per_tok,
            renormalize=self.config.norm_topk_prob,
        )


@dataclass(frozen=True, slots=True)
class Experts:
    """Sends rows through the experts, wherever they are."""

    ops: Ops
    exchange: Exchange

    def __call__(self, layer: int, hidden_TD: Tensor, routing: Routing, weights: MoeWeights) -> Addend:
        """Each row's weighted sum over its experts, [T, D]."""
        hidden_RD, slots_RK, lists = self.exchange.dispatch(layer, hidden_TD, routing)
        outputs_RKD = self.ops.experts(hidden_RD, slots_RK, weights.gate_up_E2ID, weights.down_EDI, lists)
        return self.exchange.combine(layer, outputs_RKD, routing)
