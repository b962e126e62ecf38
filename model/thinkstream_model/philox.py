"""Random numbers that are a pure function of (seed, index of the token, vocabulary id).

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based
generator: no state goes from one token to the next, so a text that is taken up elsewhere draws what it
would have drawn, and any device, kernel or rank gets the same words.

The key is the seed. The counter is (id // 4, 0, index low, index high); its word number id % 4 belongs to
the id. All words are unsigned 32 bits, held in int64.

B rows, V vocabulary, W = V / 4 counters per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_KEY_STEPS = (0x9E37_79B9, 0xBB67_AE85)
_NUM_ROUNDS = 10


def philox_4x32(
    counters: tuple[Tensor, Tensor, Tensor, Tensor], keys: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the ten rounds.

    Args:
        counters: The four words of the counters, int64 in [0, 2^32), broadcast against each other.
        keys: The two words of the keys, likewise.

    Returns:
        Four random words per counter.
    """
    # Both multiplications of a round go in one tensor: `even` holds words 0 and 2, `odd` words 1 and 3.
    even = _pair(counters[0], counters[2])
    odd = _pair(counters[1], counters[3])
    key = _pair(*keys)
    multipliers = _pair(*(torch.tensor(word, device=even.device) for word in _MULTIPLIERS))
    key_steps = _pair(*(torch.tensor(word, device=even.device) for word in _KEY_STEPS))
    dims = max(even.dim(), odd.dim(), key.dim())
    even, odd, key, multipliers, key_steps = (
        pair.view(2, *(1,) * (dims - pair.dim()), *pair.shape[1:])
        for pair in (even, odd, key, multipliers, key_steps)
    )
    for _ in range(_NUM_ROUNDS):
        # The product wraps in 64 bits, signed; shift and mask still give its high word.
        product = even * multipliers
        high, low = (product >> 32) & _MASK, product & _MASK
        even = high.flip(0) ^ odd ^ key
        odd = low.flip(0)
        key = (key + key_steps) & _MASK
    return even[0], odd[0], even[1], odd[1]


def _pair(first: Tensor, second: Tensor) -> Tensor:
    shape = (first + second).shape
    return torch.stack([first.expand(shape), second.expand(shape)])


def random_words(seed_B: Tensor, index_B: Tensor, num_ids: int) -> Tensor:
    """One random word per row and vocabulary id.

    Args:
        seed_B: int64, two's complement of an unsigned seed.
        index_B: int64, place of the token that is being sampled.
        num_ids: Ids from 0.

    Returns:
        [B, V], int64 in [0, 2^32).
    """
    ids_W = torch.arange((num_ids + 3) // 4, device=seed_B.device)
    seed_B1, index_B1 = seed_B.unsqueeze(1), index_B.unsqueeze(1)
    words = philox_4x32(
        (ids_W, torch.zeros_like(ids_W), index_B1 & _MASK, (index_B1 >> 32) & _MASK),
        (seed_B1 & _MASK, (seed_B1 >> 32) & _MASK),
    )
    return torch.stack(words, dim=-1).flatten(1)[:, :num_ids]


def gumbel_noise(seed_B: Tensor, index_B: Tensor, num_ids: int) -> Tensor:
    """Standard Gumbel noise per row and vocabulary id, [B, V], float32, always finite.

    Uniform numbers that lead to large noise are small ones, which float32 resolves finely.
    """
    words_BV = random_words(seed_B, index_B, num_ids)
    uniform_BV = words_BV.float().add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return uniform_BV.neg_().log1p_().neg_().log_().neg_()
