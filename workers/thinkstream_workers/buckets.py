"""Steps of any size brought to few sizes, so that what was captured for one replays for others.

A bucket has room for decodes, for prompts behind them, or for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from thinkstream_model.inputs import count_decodes
from thinkstream_model.step_sizes import PROMPT_STEP, SPLIT_KEYS, doubling

from .step_arrays import StepLengths

MAX_PROMPTS = 8
"""Prompts of a step that still gets a graph. Where there are any there is room for all of them: one without
tokens costs nothing that would be worth a bucket of its own."""
MAX_PROMPT_TOKENS = 2_048
"""Tokens of these prompts; more keep the device busy while the host launches."""
PROMPT_BUCKETS: tuple[int, ...] = (
    *range(PROMPT_STEP, 257, PROMPT_STEP),
    *range(384, 513, 128),
    *range(768, MAX_PROMPT_TOKENS + 1, 256),
)
"""Tokens of the buckets of prompts. More of them would waste less on padding and meet fewer graphs."""

_ROWS: tuple[int, ...] = (
    *range(1, 9),
    *range(10, 17, 2),
    *range(20, 33, 4),
    *range(40, 65, 8),
    *range(80, 129, 16),
)
_ROWS_BESIDE_PROMPTS = (8, 16, 32, 64)
"""Beside prompts a row that pads costs 0.02 ms of some 25, and the buckets are many enough."""
_CONTEXT_TOKENS = SPLIT_KEYS
"""The least context of a decode's bucket, doubled from one to the next; a split of the attention kernels.

Wider steps would be fewer buckets, but each row and key head has programs for the splits of the bucket's
context. One that finds no keys still takes its turn, and many splits rule out the kernel for few.
"""
_CONTEXT_BESIDE_PROMPTS = 4_096
"""The same beside prompts: such steps take long enough not to notice."""
_USUAL_CONTEXTS = (256, 512, 1_024, 2_048)
_USUAL_BESIDE_PROMPTS = 32
"""Contexts of usual decodes, and how many of them prompts usually come to at most."""

GraphEnd = Literal["filtered", "unfiltered", "none"]
"""What a graph does behind the logits: sample, with filters or without; or leave it to who replays it."""


class Bucket(NamedTuple):
    """What steps have in common that replay one graph.

    Attributes:
        num_decodes: Sequences of one token each, padding included; they come first.
        decode_context: Keys of the longest of them at most.
        num_prompt_tokens: Tokens of all prompts behind them, padding included; 0 without prompts.
        prompt_context: Keys of the longest prompt at most.
        end: How far the graph goes.
    """

    num_decodes: int
    decode_context: int
    num_prompt_tokens: int
    prompt_context: int
    end: GraphEnd

    @classmethod
    def of(
        cls, query_lens: Sequence[int], context_lens: Sequence[int], end: GraphEnd, *, longest: int
    ) -> Bucket | None:
        """The smallest one that holds a step; None for a step of more prompts than gain by a graph.

        Args:
            query_lens: Tokens of each sequence: decodes', then prompts'.
            context_lens: Keys of each.
            end: How far the graph goes.
            longest: Keys that any sequence may have. A prompt's attention does not follow from its bucket's
                context, so one bucket does for all.
        """
        num_decodes = count_decodes(query_lens)
        num_prompts, num_prompt_tokens = len(query_lens) - num_decodes, sum(query_lens[num_decodes:])
        if num_prompts > MAX_PROMPTS or num_prompt_tokens > MAX_PROMPT_TOKENS:
            return None
        context = max(context_lens[:num_decodes], default=0)
        if not num_prompts:
            context = _doubled_to(context, _CONTEXT_TOKENS, longest)
            return cls(bucket_rows(num_decodes), context, 0, 0, end)
        if num_decodes:
            num_decodes = rows_beside_prompts(num_decodes)
            context = _doubled_to(context, _CONTEXT_BESIDE_PROMPTS, longest)
        return cls(num_decodes, context, _prompt_bucket(num_prompt_tokens), longest, end)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, padding included."""
        return self.num_decodes + self.num_prompt_tokens

    @property
    def num_prompts(self) -> int:
        """Prompts, padding included."""
        return MAX_PROMPTS if self.num_prompt_tokens else 0

    @property
    def num_sequences(self) -> int:
        """Decodes and prompts, padding included."""
        return self.num_decodes + self.num_prompts

    @property
    def lengths(self) -> StepLengths:
        """What the kernels are launched for."""
        decodes, prompts = self.num_decodes, self.num_prompts
        return StepLengths(
            query_lens=(1,) * decodes + (self.num_prompt_tokens,) * prompts,
            context_lens=(self.decode_context,) * decodes + (self.prompt_context,) * prompts,
            has_padding=prompts > 0,
        )


def bucket_rows(num_rows: int) -> int:
    """Rows of the smallest bucket of decodes that holds so many: exact up to 8, within a quarter beyond."""
    return _room(num_rows, _ROWS, 32)


def rows_beside_prompts(num_rows: int) -> int:
    """Rows of the smallest bucket that holds so many decodes and prompts too."""
    return _room(num_rows, _ROWS_BESIDE_PROMPTS, 128)


def usual_buckets(max_num_seqs: int, max_num_batched_tokens: int, longest: int) -> list[Bucket]:
    """Buckets that service meets most, the most wanted first.

    Before all come the one of most tokens and the one of most decodes, whose graphs take the memory that the
    others' share; then prompts, decodes of 1, 2, 4 and so on sequences, as their contexts grow, and prompts
    beside some decodes.

    Args:
        max_num_seqs: Sequences decoded at once.
        max_num_batched_tokens: Tokens of a step.
        longest: Keys that any sequence may have.
    """

    def bucket(num_decodes: int, context: int, num_prompt_tokens: int = 0) -> Bucket:
        prompts = (num_prompt_tokens,) if num_prompt_tokens else ()
        query_lens, context_lens = (1,) * num_decodes + prompts, (context,) * num_decodes + prompts
        found = Bucket.of(query_lens, context_lens, "filtered", longest=longest)
        assert found is not None, "one prompt of a bucket's size has a bucket"
        return found

    numbers = [*doubling(1, max_num_seqs)]
    few = [number for number in numbers if number <= _USUAL_BESIDE_PROMPTS]
    most = _prompt_bucket(min(max_num_batched_tokens, MAX_PROMPTS * longest, MAX_PROMPT_TOKENS))
    sizes = [num_tokens for num_tokens in PROMPT_BUCKETS if num_tokens <= most]
    prompts = [bucket(0, 0, num_tokens) for num_tokens in sizes]
    decodes = [bucket(number, context) for context in _USUAL_CONTEXTS for number in numbers]
    mixed = [bucket(number, 1, num_tokens) for number in few for num_tokens in sizes]
    largest = [mixed[-1], bucket(max_num_seqs, 1)]
    return [*dict.fromkeys([*largest, *prompts, *decodes, *mixed])]


def sequence_counts(max_num_seqs: int) -> list[int]:
    """Sequences of each bucket, padding included, where so many take part in a step at most; ascending."""
    numbers = range(1, max_num_seqs + 1)
    beside_prompts = {rows_beside_prompts(num_decodes) + MAX_PROMPTS for num_decodes in numbers}
    return sorted({MAX_PROMPTS, *map(bucket_rows, numbers), *beside_prompts})


def most_sequences(max_num_seqs: int) -> int:
    """Sequences of the widest bucket, padding included, where so many take part in a step at most."""
    return rows_beside_prompts(max_num_seqs) + MAX_PROMPTS


def most_tokens(max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """Tokens of no step more, padding included, where so many sequences and tokens are in one at most."""
    num_prompt_tokens = _prompt_bucket(min(max_num_batched_tokens, MAX_PROMPT_TOKENS))
    return max(max_num_batched_tokens, rows_beside_prompts(max_num_seqs) + num_prompt_tokens)


def _prompt_bucket(num_tokens: int) -> int:
    return next(size for size in PROMPT_BUCKETS if size >= num_tokens)


def _room(num_rows: int, rooms: Sequence[int], step: int) -> int:
    """The first of the rooms that holds so many rows; beyond them rooms are multiples of the step."""
    return next((room for room in rooms if room >= num_rows), -(-num_rows // step) * step)


def _doubled_to(context: int, least: int, longest: int) -> int:
    while least < context:
        least *= 2
    return min(least, longest)
