"""Keys and values of all layers, in blocks of a fixed number of tokens.

Which block belongs to whom is the worker's business; here a block is a row of memory.

N blocks, S tokens per block, H key and value heads, C width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ThinkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCache:
    """The paged cache of one Thinker on one device.

    Attributes:
        keys_NSHC: One tensor per layer; keys are stored after their norm and their rotation.
        values_NSHC: One tensor per layer.
    """

    keys_NSHC: tuple[Tensor, ...]
    values_NSHC: tuple[Tensor, ...]

    @classmethod
    def allocate(
        cls,
        config: ThinkerConfig,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> KVCache:
        """Allocate all blocks at once.

        They are zeroed, because attention multiplies the unwritten places of a block by zero and would
        make NaN of whatever was there before.

        Args:
            config: The Thinker's shape.
            num_blocks: Blocks, shared by all sequences.
            block_size: Tokens per block.
            dtype: Kind of the numbers, the Thinker's own.
            device: Where the Thinker is.
        """
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        layers = range(config.num_layers)
        return cls(
            keys_NSHC=tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in layers),
            values_NSHC=tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in layers),
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""
        return self.keys_NSHC[0].shape[0]

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.keys_NSHC[0].shape[1]
