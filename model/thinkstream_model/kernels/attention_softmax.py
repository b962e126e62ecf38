"""``running_softmax`` in Gluon, with the same bits: what is summed so far, as a warp group holds it.

``result`` and ``split`` are what they are there; a split's sum of weights stands in eight equal columns.

R rows of a warp group, C width of a head, K keys of a tile, X equal columns.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .running_softmax import TILE_KEYS

ROWS = gl.constexpr(64)
"""Of a warp group: what the tensor cores of its four warps take at once."""
SUM_COLUMNS = gl.constexpr(8)
"""All are equal, so that these give the bits of the more that ``running_softmax`` has."""
SCORE_LAYOUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_KEYS.value, 16]))
SUM_LAYOUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, SUM_COLUMNS.value, 16]))
"""Which thread has which of the scores, and of the sums."""


@gluon.jit
def new_result_and_split(
    WIDTH: gl.constexpr,
) -> tuple[tuple[gl.tensor, gl.tensor, gl.tensor], tuple[gl.tensor, gl.tensor, gl.tensor]]:
    """What the first split is merged into, and what its first tile is added to."""
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    top_R = gl.full([ROWS], float("-inf"), gl.float32, layout=gl.SliceLayout(1, SCORE_LAYOUT))
    sum_R = gl.full([ROWS], 0.0, gl.float32, layout=gl.SliceLayout(1, SCORE_LAYOUT))
    sum_RX = gl.full([ROWS, SUM_COLUMNS], 0.0, gl.float32, layout=SUM_LAYOUT)
    out_RC = gl.full([ROWS, WIDTH], 0.0, gl.float32, layout=out_layout)
    return (top_R, sum_R, out_RC), (top_R, sum_RX, out_RC)


@gluon.jit
def finite(top_R: gl.tensor) -> gl.tensor:
    """What to subtract from scores, as ``running_softmax`` has it."""
    return gl.where(top_R == float("-inf"), 0.0, top_R)


@gluon.jit
def weights(scores_RK: gl.tensor, shift_R: gl.tensor, scale: gl.tensor) -> gl.tensor:
    """What scores come to, less the top of their rows."""
    return gl.exp2(gl.fma(scores_RK, scale, -gl.expand_dims(shift_R, 1))).to(gl.bfloat16)


@gluon.jit
def scaled(sum_RX: gl.tensor, out_RC: gl.tensor, keep_R: gl.tensor) -> tuple[gl.tensor, gl.tensor]:
    """What a split has summed so far, brought to its new top."""
    keep_sum_R = gl.convert_layout(keep_R, gl.SliceLayout(1, sum_RX.type.layout))
    return sum_RX * gl.expand_dims(keep_sum_R, 1), out_RC * gl.expand_dims(keep_R, 1)


@gluon.jit
def merge(result: gl.tuple, split: gl.tuple) -> tuple[gl.tensor, gl.tensor, gl.tensor]:
    """``running_softmax.merge`` of ``summed``."""
    top_R, sum_R, out_RC = result
    split_top_R, split_sum_RX, split_out_RC = split
    split_sum_R = gl.convert_layout(gl.max(split_sum_RX, 1), top_R.type.layout)
    new_top_R = gl.maximum(top_R, split_top_R)
    shift_R = finite(new_top_R)
    keep_R, share_R = gl.exp2(top_R - shift_R), gl.exp2(split_top_R - shift_R)
    sum_R = gl.fma(split_sum_R, share_R, sum_R * keep_R)
    out_RC = gl.fma(split_out_RC, gl.expand_dims(share_R, 1), out_RC * gl.expand_dims(keep_R, 1))
    return new_top_R, sum_R, out_RC


@gluon.jit
def mean(result: gl.tuple) -> gl.tensor:
    """``running_softmax.mean``."""
    _, sum_R, out_RC = result
    return out_RC / gl.expand_dims(gl.where(sum_R == 0.0, 1.0, sum_R), 1)
