"""Sizes that the kernels and all who prepare steps for them agree on: graphs, dry runs, the memory kept free.

They are the kernels' own. They stand apart from them because a replica plans its steps where Triton may not
even be installed.
"""

from __future__ import annotations

from collections.abc import Iterator

SPLIT_KEYS = 256
"""Keys that decode attention takes as one piece; contexts of as many pieces are launched alike.

Part of the order of summation: another number, other bits.
"""

PROMPT_STEP = 64
"""Prompts that get a graph are padded to a multiple, the rows that a tile of the dense products has at most
where there are few: less would be as much work, and more graphs. From 256 tokens on the steps widen to 128,
from 512 on to 256 (``buckets`` of the workers): padding is a small share there. No bit follows from it.
"""

NUM_PARTS = 4
"""Parts that the depth of what attention adds to the residual stream is cut into, each summed by itself.

Part of the order of summation: another number, other bits.
"""

MAX_ROWS_IN_PARTS = 256
"""Up to so many rows, their parts wait for the norm to sum them; no bit follows from it."""

NUM_ROUTER_PARTS = 8
"""Parts that the depth of the router's logits is cut into. Another number, other bits."""


def doubling(first: int, last: int) -> Iterator[int]:
    """From the first to the last, each twice the one before; the last alone where the first is beyond it."""
    number = first
    while number < last:
        yield number
        number *= 2
    yield last
