"""Who holds which block of the KV cache, and which blocks hold a prefix worth sharing.

Counts and names blocks; the tensors behind them are ``KVCache``'s. Knows no torch and no policy: whom to
admit and whom to preempt is the Batcher's decision. The same calls in the same order give the same
blocks on every rank.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from .sequence import Sequence

_DIGEST_BYTES = 16
"""Long enough that two prefixes never meet by chance, so equal digests are taken for equal tokens."""


class BlockManager:
    """Hands out blocks, counts who uses them, and finds blocks that already hold a prefix.

    A block is blank (free, nothing worth keeping), cached (free, but a known prefix would find it) or
    held by one or more sequences. Blank blocks are given first, then the cached one that was freed
    longest ago. Only full blocks are shared, and only once their keys and values are written.

    Args:
        num_blocks: Blocks of the pool.
        block_size: Tokens per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_holders = [0] * num_blocks
        self._digest_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._blank) + len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives a sequence without blocks room for ``num_tokens`` tokens, if there is any.

        Its leading tokens that some block already holds count as computed. At least one token is left
        to compute, for a step must bring logits.

        Returns:
            Whether it got its blocks; otherwise nothing has changed.
        """
        prefix = self._find_prefix(sequence)
        num_new = self.num_blocks_for(num_tokens) - len(prefix)
        num_woken = sum(1 for block in prefix if not self._num_holders[block])
        if num_new > self.num_free_blocks - num_woken:
            return False
        for block in prefix:
            self._cached.pop(block, None)
            self._num_holders[block] += 1
        sequence.block_table.extend(prefix)
        sequence.num_shared_blocks = len(prefix)
        sequence.num_computed_tokens = len(prefix) * self.block_size
        for _ in range(num_new):
            self._append(sequence)
        return True

    def extend(self, sequence: Sequence) -> bool:
        """Gives a sequence one more block, if one is free."""
        if not self.num_free_blocks:
            return False
        self._append(sequence)
        return True

    def share(self, sequence: Sequence) -> None:
        """Makes the full blocks known whose keys and values are written by now."""
        first, end = sequence.num_shared_blocks, sequence.num_computed_tokens // self.block_size
        if end <= first:
            return
        self._digest(sequence, end)
        for block, digest in zip(
            sequence.block_table[first:end], sequence.block_digests[first:], strict=False
        ):
            if self._block_of.setdefault(digest, block) == block:
                self._digest_of[block] = digest
        sequence.num_shared_blocks = end

    def disown(self, sequence: Sequence) -> None:
        """Makes nothing findable of what a sequence's blocks hold: it may be wrong."""
        for block in sequence.block_table:
            digest = self._digest_of[block]
            if digest is not None:
                del self._block_of[digest]
                self._digest_of[block] = None

    def release(self, sequence: Sequence) -> None:
        """Takes back all blocks of a sequence; what they hold stays findable until they are reused."""
        # The end of a text is less likely to be met again than its beginning, so it is freed first.
        for block in reversed(sequence.block_table):
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if self._digest_of[block] is None:
                self._blank.append(block)
            else:
                self._cached[block] = None
        del sequence.block_table[:]
        sequence.num_computed_tokens = sequence.num_shared_blocks = 0

    def _append(self, sequence: Sequence) -> None:
        block = self._blank.pop() if self._blank else self._forget_oldest()
        self._num_holders[block] = 1
        sequence.block_table.append(block)

    def _forget_oldest(self) -> int:
        block, _ = self._cached.popitem(last=False)
        digest = self._digest_of[block]
        assert digest is not None
        del self._block_of[digest]
        self._digest_of[block] = None
        return block

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        prefix: list[int] = []
        for index in range((sequence.num_tokens - 1) // self.block_size):
            self._digest(sequence, index + 1)
            block = self._block_of.get(sequence.block_digests[index])
            if block is None:
                break
            prefix.append(block)
        return prefix

    def _digest(self, sequence: Sequence, num_blocks: int) -> None:
        """Digests the first ``num_blocks`` blocks of tokens, each chained to the one before."""
        digests, size = sequence.block_digests, self.block_size
        for index in range(len(digests), num_blocks):
            state = hashlib.blake2b(digests[-1] if digests else b"", digest_size=_DIGEST_BYTES)
            state.update(sequence.token_ids[index * size : (index + 1) * size].tobytes())
            digests.append(state.digest())
