from __future__ import annotations

import itertools
import os
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from thinkstream_client.records import JobRef
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence


def sequence_of(token_ids: list[int] | range) -> Sequence:
    key = JobKey(JobRef("tenant", "job"), 1)
    return Sequence.of(Submit(key=key, prompt_ids=tuple(token_ids), sampling=ResolvedSampling()), 1, 1000)


def compute(blocks: BlockManager, sequence: Sequence, num_tokens: int | None = None) -> None:
    """Stands for a step that wrote keys and values of the first ``num_tokens`` tokens."""
    sequence.num_computed_tokens = sequence.num_tokens if num_tokens is None else num_tokens
    blocks.share(sequence)


def test_takes_as_many_blocks_as_the_tokens_fill() -> None:
    blocks = BlockManager(4, 4)
    first, second = sequence_of(range(5)), sequence_of(range(100, 109))
    assert blocks.allocate(first, 8)
    assert len(first.block_table) == 2
    assert not blocks.allocate(second, 9)
    assert len(second.block_table) == 0
    assert blocks.num_free_blocks == 2
    assert blocks.extend(first)
    assert blocks.extend(first)
    assert not blocks.extend(first)
    assert sorted(first.block_table) == [0, 1, 2, 3]
    blocks.release(first)
    assert blocks.num_free_blocks == 4
    assert len(first.block_table) == 0


def test_shares_full_blocks_once_they_are_computed() -> None:
    blocks = BlockManager(8, 4)
    first, early, late = sequence_of(range(10)), sequence_of(range(10)), sequence_of(range(10))
    assert blocks.allocate(first, 10)
    compute(blocks, first, 7)
    assert blocks.allocate(early, 10)
    assert early.num_computed_tokens == 4  # only the first block was full by then
    assert early.block_table[0] == first.block_table[0]
    compute(blocks, first)
    assert blocks.allocate(late, 10)
    assert late.num_computed_tokens == 8
    assert late.block_table[:2] == first.block_table[:2]
    assert late.block_table[2] != first.block_table[2]
    for sequence in (first, early, late):
        blocks.release(sequence)
    assert blocks.num_free_blocks == 8


def test_leaves_one_token_to_compute() -> None:
    blocks = BlockManager(8, 4)
    first, again = sequence_of(range(8)), sequence_of(range(8))
    assert blocks.allocate(first, 8)
    compute(blocks, first)
    assert blocks.allocate(again, 9)
    assert again.num_computed_tokens == 4


def test_a_block_is_found_only_behind_the_same_beginning() -> None:
    blocks = BlockManager(8, 4)
    first = sequence_of([*range(4), *range(10, 14), 1])
    other = sequence_of([*range(1, 5), *range(10, 14), 1])
    assert blocks.allocate(first, 9)
    compute(blocks, first)
    assert blocks.allocate(other, 9)
    assert other.num_computed_tokens == 0


def test_freed_blocks_are_found_until_reused_and_the_oldest_goes_first() -> None:
    blocks = BlockManager(4, 4)
    old, new = sequence_of(range(8)), sequence_of(range(50, 58))
    for sequence in (old, new):
        assert blocks.allocate(sequence, 8)
        compute(blocks, sequence)
    blocks.release(old)
    blocks.release(new)
    other = sequence_of(range(90, 94))
    assert blocks.allocate(other, 4)  # takes the end of the text that was freed first
    beginning = sequence_of(range(5))
    assert blocks.allocate(beginning, 5)  # finds its beginning, takes the end of the other text
    assert beginning.num_computed_tokens == 4
    blocks.release(other)
    again = sequence_of(range(50, 59))
    assert not blocks.allocate(again, 9)
    assert blocks.allocate(again, 8)
    assert again.num_computed_tokens == 4


def test_room_for_a_free_prefix_is_not_counted_twice() -> None:
    blocks = BlockManager(3, 4)
    first = sequence_of(range(9))
    assert blocks.allocate(first, 9)
    compute(blocks, first)
    blocks.release(first)
    again = sequence_of(range(9))
    assert not blocks.allocate(again, 13)
    assert blocks.num_free_blocks == 3
    assert blocks.allocate(again, 12)
    assert blocks.num_free_blocks == 0
    assert len(set(again.block_table)) == 3


def test_digests_do_not_depend_on_the_process() -> None:
    program = (
        "from thinkstream_client.records import JobRef\n"
        "from thinkstream_workers.block_manager import BlockManager\n"
        "from thinkstream_workers.orders import JobKey, Submit\n"
        "from thinkstream_workers.sampling import ResolvedSampling\n"
        "from thinkstream_workers.sequence import Sequence\n"
        "order = Submit(key=JobKey(JobRef('t', 'j'), 1), prompt_ids=tuple(range(9)),"
        " sampling=ResolvedSampling())\n"
        "sequence = Sequence.of(order, 1, 1000)\n"
        "blocks = BlockManager(4, 4)\n"
        "blocks.allocate(sequence, 9)\n"
        "sequence.num_computed_tokens = 9\n"
        "blocks.share(sequence)\n"
        "print([digest.hex() for digest in sequence.block_digests])\n"
    )

    def digests(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        return run.stdout

    assert digests("1") == digests("2") != ""


@settings(deadline=None)
@given(st.data())
def test_no_block_is_lost_or_given_twice(data: st.DataObject) -> None:
    num_blocks, size = 12, 2
    blocks = BlockManager(num_blocks, size)
    held: list[Sequence] = []
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["allocate", "extend", "compute", "release"]))
        if action == "allocate":
            # Few different tokens, so that beginnings are often shared.
            sequence = sequence_of(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=12)))
            if blocks.allocate(sequence, sequence.num_tokens + data.draw(st.integers(0, 4))):
                held.append(sequence)
        elif held:
            sequence = data.draw(st.sampled_from(held))
            if action == "extend":
                blocks.extend(sequence)
            elif action == "compute":
                compute(blocks, sequence)
            else:
                blocks.release(sequence)
                held.remove(sequence)
        in_use = {block for sequence in held for block in sequence.block_table}
        assert blocks.num_free_blocks == num_blocks - len(in_use)
        for sequence, other in itertools.combinations(held, 2):
            assert_shared_blocks_hold_the_same(sequence, other, size)


def assert_shared_blocks_hold_the_same(sequence: Sequence, other: Sequence, size: int) -> None:
    for index, block in enumerate(sequence.block_table):
        if block in other.block_table:
            assert other.block_table.index(block) == index
            end = (index + 1) * size
            assert other.token_ids[:end] == sequence.token_ids[:end]
