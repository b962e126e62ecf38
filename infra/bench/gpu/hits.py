"""How many experts the rows of a step really chose: what the floor of its time depends on most."""

from __future__ import annotations

import torch
from torch import Tensor

from thinkstream_model.device_ops import ops_for
from thinkstream_model.exchange import LocalExchange
from thinkstream_model.ops import Dispatched, Ops, Routing
from thinkstream_model.thinker import Thinker, random_weights

from .shape import released_config


class CountingExchange(LocalExchange):
    """A local exchange that counts on the device, when told to, also in steps captured meanwhile.

    Args:
        ops: See ``LocalExchange``.
        num_experts: Experts of a layer.
    """

    def __init__(self, ops: Ops, num_experts: int) -> None:
        super().__init__(ops)
        self._num_experts = num_experts
        self._num_rows = 0
        self._sums_2: Tensor | None = None  # distinct experts, layers of steps

    @torch.inference_mode()
    def count(self, num_rows: int) -> None:
        """Forget what was counted and count steps of so many rows from now on; 0 is none."""
        self._num_rows = num_rows
        if self._sums_2 is not None:
            self._sums_2.zero_()

    @property
    def mean_hits(self) -> float:
        """Distinct experts per layer and step."""
        assert self._sums_2 is not None
        return float(self._sums_2[0] / self._sums_2[1])

    def dispatch(self, layer: int, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """See ``LocalExchange.dispatch``."""
        if hidden_TD.shape[0] == self._num_rows:
            if self._sums_2 is None:
                self._sums_2 = hidden_TD.new_zeros(2, dtype=torch.int64)
            is_hit_E = self._sums_2.new_zeros(self._num_experts)
            is_hit_E.index_fill_(0, routing.expert_ids_TK.flatten().long(), 1)
            self._sums_2[0] += is_hit_E.sum()
            self._sums_2[1] += 1
        return super().dispatch(layer, hidden_TD, routing)


def counting_thinker(num_layers: int) -> tuple[Thinker, CountingExchange]:
    """Make a Thinker of random weights in the released shape on the GPU, and what counts its experts."""
    weights = random_weights(released_config(num_layers), device="cuda", dtype=torch.bfloat16)
    ops = ops_for(weights.config, weights.embedding_VD.device)
    counting = CountingExchange(ops, weights.config.num_experts)
    return Thinker(weights, ops, counting), counting
