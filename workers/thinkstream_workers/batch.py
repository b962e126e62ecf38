"""What the Batcher, the runner and the engine hand each other: a step's choice, its tokens, the load."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

from thinkstream_client.records import TokenLogprobs

from .orders import JobKey, Started
from .sequence import Sequence


class SampledTokens(NamedTuple):
    """What a step brought, one entry per sequence of ``Batch.sampled``.

    Attributes:
        token_ids: The tokens; negative where the model's logits are no numbers.
        logprobs: None where no sequence of the batch asked for any.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None


class EngineLoad(NamedTuple):
    """What an engine has in hand, and what it has done since its start.

    Attributes:
        running: Sequences that hold blocks.
        waiting: Sequences that hold none.
        free_blocks: Blocks that no sequence holds.
        num_blocks: Blocks in all.
        steps: Steps done.
        tokens: Tokens sampled.
        preemptions: Times that a sequence had to give its blocks back.
    """

    running: int
    waiting: int
    free_blocks: int
    num_blocks: int
    steps: int
    tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's choice: decodes first, then chunks of prompts.

    Attributes:
        sequences: Who takes part.
        query_lens: Tokens of each in this step, behind those it has computed.
        sampled: Those of them that reach the end of their tokens and so get the next one.
        started: Those whose first step this is.
    """

    sequences: tuple[Sequence, ...]
    query_lens: tuple[int, ...]
    sampled: tuple[Sequence, ...]
    started: tuple[Started, ...]

    @classmethod
    def of(cls, sequences: Seq[Sequence], query_lens: Seq[int], started: Seq[Sequence] = ()) -> Batch:
        """Makes the batch of some sequences and their numbers of tokens."""
        sampled = [
            sequence
            for sequence, query_len in zip(sequences, query_lens, strict=True)
            if sequence.num_computed_tokens + query_len == len(sequence.token_ids)
        ]
        return cls(
            sequences=tuple(sequences),
            query_lens=tuple(query_lens),
            sampled=tuple(sampled),
            started=tuple(Started(sequence.key, sequence.num_cached_tokens) for sequence in started),
        )

    @property
    def alone(self) -> JobKey | None:
        """The suspect that this step is for, if it is for one."""
        return self.sequences[0].key if self.sequences[0].alone else None

    def halves(self) -> tuple[Batch, ...]:
        """Cuts a batch in two; a batch of one sequence has no halves."""
        cut = len(self.sequences) // 2
        if not cut:
            return ()
        return (
            Batch.of(self.sequences[:cut], self.query_lens[:cut]),
            Batch.of(self.sequences[cut:], self.query_lens[cut:]),
        )
