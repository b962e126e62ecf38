"""What the Batcher, the runner and the engine hand each other: a step's choice, its tokens, the load."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

from thinkstream_client.outcome import TokenLogprobs

from .orders import JobKey, Started
from .sequence import Sequence, SequenceStatus


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
        context_lens: Tokens of each that are computed with this step.
        sampled: Those of them that reach the end of their tokens and so get the next one.
        places: Where the next one goes among the tokens of each of ``sampled``.
        started: Those whose first step this is.
    """

    sequences: tuple[Sequence, ...]
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    sampled: tuple[Sequence, ...]
    places: tuple[int, ...]
    started: tuple[Started, ...]

    @classmethod
    def of(cls, sequences: Seq[Sequence], query_lens: Seq[int], started: Seq[Sequence] = ()) -> Batch:
        """Makes the batch of some sequences and their numbers of tokens."""
        context_lens: list[int] = []
        sampled: list[Sequence] = []
        places: list[int] = []
        for sequence, query_len in zip(sequences, query_lens, strict=True):
            context_len = sequence.num_computed_tokens + query_len
            context_lens.append(context_len)
            if context_len == len(sequence.token_ids):
                sampled.append(sequence)
                places.append(context_len)
        return cls(
            sequences=tuple(sequences),
            query_lens=tuple(query_lens),
            context_lens=tuple(context_lens),
            sampled=tuple(sampled),
            places=tuple(places),
            started=tuple(Started(sequence.key, sequence.num_cached_tokens) for sequence in started),
        )

    @property
    def alone(self) -> JobKey | None:
        """The suspect that this step is for, if it is for one."""
        return self.sequences[0].key if self.sequences[0].alone else None

    @property
    def needs_ids(self) -> bool:
        """Whether the step behind this one needs its ids on the host, where penalties count them."""
        return any(sequence.has_penalties for sequence in self.sampled)

    @property
    def is_plain(self) -> bool:
        """Whether each sequence gets a token, and none asks for more of the sampler than the next one."""
        return len(self.sampled) == len(self.sequences) and not any(
            sequence.has_extras or sequence.num_logprobs for sequence in self.sampled
        )

    def living(self) -> tuple[Batch, ...]:
        """The same step without the sequences that have ended since; none when all have."""
        pairs = [
            (sequence, query_len)
            for sequence, query_len in zip(self.sequences, self.query_lens, strict=True)
            if sequence.status is SequenceStatus.RUNNING
        ]
        if not pairs:
            return ()
        sequences, query_lens = zip(*pairs, strict=True)
        return (Batch.of(sequences, query_lens),)

    def halves(self) -> tuple[Batch, ...]:
        """Cuts a batch in two; a batch of one sequence has no halves."""
        cut = len(self.sequences) // 2
        if not cut:
            return ()
        return (
            Batch.of(self.sequences[:cut], self.query_lens[:cut]),
            Batch.of(self.sequences[cut:], self.query_lens[cut:]),
        )
