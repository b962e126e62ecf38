"""Gumbel noise of (seed, index of the token, vocabulary id), as ``thinkstream_model.philox`` draws it.

The words are the same bit for bit. The noise is the same up to the last bits of float32, on every device:
the logarithms are written out here, because those that devices have built in lose all digits near 1, which
is where the large noise comes from.

W counters of four ids each, N = 4 W ids.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_LN_2 = tl.constexpr(0.6931471805599453)
_TO_UNIT = tl.constexpr(2.0**-32)
_BELOW_ONE = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def gumbel_noise(seed: tl.tensor, index: tl.tensor, first_id: tl.tensor, NUM_IDS: tl.constexpr) -> tl.tensor:
    """Noise of the ids from ``first_id``, a multiple of 4, on; float32, [N]."""
    return noise_of(random_words(seed, index, first_id, NUM_IDS))


@triton.jit
def random_words(seed: tl.tensor, index: tl.tensor, first_id: tl.tensor, NUM_IDS: tl.constexpr) -> tl.tensor:
    """One random word per id; uint32, [N]. A counter is worked out once for the four ids it serves."""
    counters_W = (first_id // 4 + tl.arange(0, NUM_IDS // 4)).to(tl.uint32)
    zeros_W = tl.zeros_like(counters_W)
    low_W, high_W = zeros_W + index.to(tl.uint32), zeros_W + (index >> 32).to(tl.uint32)
    word_0_W, word_1_W, word_2_W, word_3_W = tl.philox(seed, counters_W, zeros_W, low_W, high_W)
    return tl.interleave(tl.interleave(word_0_W, word_2_W), tl.interleave(word_1_W, word_3_W))


@triton.jit
def noise_of(words: tl.tensor) -> tl.tensor:
    """Standard Gumbel noise of uniform words, float32, always finite."""
    uniform = tl.minimum((words.to(tl.float32) + 0.5) * _TO_UNIT, _BELOW_ONE)
    return -log(-log1p(-uniform))


@triton.jit
def log(x: tl.tensor) -> tl.tensor:
    """Logarithm of a normal number, to about one unit in the last place."""
    mantissa, exponent = _split(x)
    return _log_of_parts(mantissa - 1.0, exponent)


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    """Logarithm of 1 + x for x in (-1, 0], to about one unit in the last place."""
    mantissa, exponent = _split(1.0 + x)
    # Where the sum needs no scaling, x itself has the digits that the sum has lost.
    return _log_of_parts(tl.where(exponent == 0, x, mantissa - 1.0), exponent)


@triton.jit
def _split(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Take x apart into mantissa * 2^exponent, the mantissa in [sqrt(1/2), sqrt(2))."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    mantissa = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
    return mantissa, exponent


@triton.jit
def _log_of_parts(x: tl.tensor, exponent: tl.tensor) -> tl.tensor:
    """Logarithm of (1 + x) * 2^exponent.

    Source: the polynomial of ``logf`` in Cephes (Moshier), good to 8e-8 relative.
    """
    tail = 7.0376836292e-2 * x - 1.1514610310e-1
    tail = tail * x + 1.1676998740e-1
    tail = tail * x - 1.2420140846e-1
    tail = tail * x + 1.4249322787e-1
    tail = tail * x - 1.6668057665e-1
    tail = tail * x + 2.0000714765e-1
    tail = tail * x - 2.4999993993e-1
    tail = tail * x + 3.3333331174e-1
    tail = tail * x - 0.5
    return tail * (x * x) + x + _LN_2 * exponent.to(tl.float32)
