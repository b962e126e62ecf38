"""How rows reach their experts and come home where all experts are on one device.

T rows, R rows that arrived here, D hidden width, K experts per row.
"""

from __future__ import annotations

from torch import Tensor

from .ops import Addend, Dispatched, Ops, Routing


class LocalExchange:
    """All experts are here, each in the slot of its own number: nothing moves.

    Args:
        ops: Sums the outputs.
    """

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def dispatch(self, layer: int, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Leave the rows where they are: a slot is its expert's number."""
        return Dispatched(hidden_TD, routing.expert_ids_TK, routing.lists)

    def combine(self, layer: int, outputs_RKD: Tensor, routing: Routing) -> Addend:
        """Sum the outputs of each row."""
        return self._ops.combine(outputs_RKD, routing.weights_TK)
