"""Where experts are: a table from logical experts to their physical copies. Pure data, no tensors.

A logical expert is an id of the checkpoint. A copy is that expert's weights in one slot of one rank's
stacked tensors. Every rank of a replica holds the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ExpertCopy(NamedTuple):
    """One physical copy of an expert."""

    rank: int
    slot: int


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """The copies of every expert of every layer.

    Attributes:
        copies: By layer and logical expert; dense layers have no experts. The first copy is the home of
            the expert, the others share its load.

    Raises:
        ValueError: An expert without a copy, or two copies in one slot.
    """

    copies: tuple[tuple[tuple[ExpertCopy, ...], ...], ...]

    def __post_init__(self) -> None:
        for layer, experts in enumerate(self.copies):
            taken: set[ExpertCopy] = set()
            for expert, copies in enumerate(experts):
                if not copies:
                    raise ValueError(f"layer {layer}: expert {expert} has no copy")
                for copy in copies:
                    if copy in taken:
                        raise ValueError(f"layer {layer}: two copies in slot {copy.slot} of rank {copy.rank}")
                    taken.add(copy)

    @classmethod
    def local(cls, num_layers: int, num_experts: int) -> ExpertPlacement:
        """Everything on one rank, each expert in the slot of its own number."""
        layer = tuple((ExpertCopy(0, expert),) for expert in range(num_experts))
        return cls((layer,) * num_layers)

    @property
    def num_ranks(self) -> int:
        """Ranks that hold experts."""
        return 1 + max((c.rank for layer in self.copies for copies in layer for c in copies), default=0)

    def experts_of(self, rank: int, layer: int) -> dict[int, int]:
        """Logical expert by slot: what a rank holds of a layer, and so what it must load."""
        return {
            copy.slot: expert
            for expert, copies in enumerate(self.copies[layer])
            for copy in copies
            if copy.rank == rank
        }
