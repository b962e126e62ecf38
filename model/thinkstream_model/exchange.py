"""How rows reach their experts and come home: the seam between the Thinker and where experts are.

``dispatch`` turns logical experts into slots of this rank's stacked weights and brings the rows there;
``combine`` brings the outputs back to the ranks and rows they came from. The model sees nothing else.

T rows, R rows that arrived here, D hidden width, K experts per row.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .ops import Addend, ExpertLists, Ops, Routing


class Dispatched(NamedTuple):
    """Rows that are to go through experts of this rank.

    Attributes:
        hidden_RD: The rows.
        slots_RK: Integers, their places in this rank's stacked weights.
        lists: The same by slot, where that is known already.
    """

    hidden_RD: Tensor
    slots_RK: Tensor
    lists: ExpertLists | None = None


class Exchange(Protocol):
    """Moves rows between ranks; knows the placement."""

    def dispatch(self, layer: int, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Send every row to the ranks of its experts."""
        ...

    def combine(self, layer: int, outputs_RKD: Tensor, routing: Routing) -> Addend:
        """Bring the experts' outputs home and sum them, weighted, in the order of k: [T, D]."""
        ...


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
