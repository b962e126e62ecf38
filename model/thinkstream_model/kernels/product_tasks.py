"""Which task a program of ``many_rows_hopper`` takes when.

A task is a block of an expert's rows by a tile of its channels: a tile has one half or two, which lie side
by side, or where they are gated a gate's and an up's. All tasks stand in one order, and in each turn the
programs take the next ones, one each.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

NUM_GROUPS = gl.constexpr(3)
ROWS = gl.constexpr(64)
"""Of a warp group: what the tensor cores of its four warps take at once."""
BLOCK_ROWS = gl.constexpr(NUM_GROUPS.value * ROWS.value)
CHANNELS = gl.constexpr(128)
"""Of half a tile; where a sum has parts, of a whole one."""

_BAND_BLOCKS = gl.constexpr(16)
"""Blocks of rows that go through all channels together, so that both are read from the L2 cache."""


@gluon.jit
def _count_of(
    expert: gl.tensor, counts: gl.tensor, NUM_EXPERTS: gl.constexpr, LISTED: gl.constexpr
) -> gl.tensor:
    count = counts
    if LISTED:
        count = gl.load(counts + gl.minimum(expert, NUM_EXPERTS - 1))
    return count


@gluon.jit
def task_of(
    turn: gl.tensor,
    expert: gl.tensor,
    before: gl.tensor,
    counts: gl.tensor,
    WIDTH: gl.constexpr,
    GATED: gl.constexpr,
    LISTED: gl.constexpr,
    NUM_EXPERTS: gl.constexpr,
    HALVES: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor, gl.tensor, gl.tensor]:
    """This program's task of a turn, looked for from the last turn's expert on.

    An expert's blocks are as few as can be, and of equally many groups, give or take one. From turn to turn
    the programs change places: where all lists are equally long, their smaller blocks would else be the same
    programs' each time.

    Returns:
        The expert, beyond the last one if there is no task; the tasks before its first; the task's first
        row, the end of its rows, and its first channel.
    """
    width: gl.constexpr = CHANNELS if GATED else HALVES * CHANNELS
    num_tiles: gl.constexpr = (WIDTH + width - 1) // width
    band_tasks: gl.constexpr = _BAND_BLOCKS * num_tiles
    programs = gl.num_programs(0)
    index = turn * programs + (gl.program_id(0) + turn) % programs
    count = _count_of(expert, counts, NUM_EXPERTS, LISTED)
    blocks = gl.cdiv(count, BLOCK_ROWS)
    while (expert < NUM_EXPERTS) & (index >= before + blocks * num_tiles):
        before += blocks * num_tiles
        expert += 1
        count = _count_of(expert, counts, NUM_EXPERTS, LISTED)
        blocks = gl.cdiv(count, BLOCK_ROWS)
    first_block = (index - before) // band_tasks * _BAND_BLOCKS
    band_blocks = gl.maximum(gl.minimum(blocks - first_block, _BAND_BLOCKS), 1)
    within = (index - before) % band_tasks
    block, blocks, groups = first_block + within % band_blocks, gl.maximum(blocks, 1), gl.cdiv(count, ROWS)
    first = block * groups // blocks * ROWS
    end = gl.minimum((block + 1) * groups // blocks * ROWS, count)
    return expert, before, first, end, within // band_blocks * width


@gluon.jit
def first_task(
    counts: gl.tensor,
    WIDTH: gl.constexpr,
    GATED: gl.constexpr,
    LISTED: gl.constexpr,
    NUM_EXPERTS: gl.constexpr,
    HALVES: gl.constexpr,
) -> tuple[gl.tensor, gl.tensor, gl.tensor, gl.tensor, gl.tensor]:
    """``task_of`` the first turn."""
    turn, expert, before = 0, 0, 0
    expert, before, first, end, channel = task_of(
        turn, expert, before, counts, WIDTH, GATED, LISTED, NUM_EXPERTS, HALVES
    )
    return expert, before, first, end, channel
