"""How many experts the rows of a step really chose: what the floor of its time depends on most."""

from __future__ import annotations

import torch
from torch import Tensor

from thinkstream_model.exchange import Dispatched, LocalExchange
from thinkstream_model.ops import Ops, Routing


class CountingExchange(LocalExchange):
    """A local exchange that counts, when told to, in steps that are not replayed from a graph.

    Args:
        ops: See ``LocalExchange``.
        num_experts: Experts of a layer.
    """

    def __init__(self, ops: Ops, num_experts: int) -> None:
        super().__init__(ops)
        self._num_experts = num_experts
        self._num_rows = 0
        self._hits: list[Tensor] = []

    def count(self, num_rows: int) -> None:
        """Forget what was counted and count steps of so many rows from now on; 0 is none."""
        self._num_rows = num_rows
        self._hits = []

    @property
    def mean_hits(self) -> float:
        """Distinct experts per layer and step."""
        return float(torch.stack(self._hits).float().mean())

    def dispatch(self, layer: int, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """See ``LocalExchange.dispatch``."""
        if hidden_TD.shape[0] == self._num_rows:
            rows_E = routing.expert_ids_TK.flatten().long().bincount(minlength=self._num_experts)
            self._hits.append((rows_E > 0).sum())
        return super().dispatch(layer, hidden_TD, routing)
