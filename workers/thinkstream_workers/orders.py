"""What goes into the Engine and what comes out: the seam between delivery and decoding.

Intake puts orders into the inbox, the Publisher takes step outputs from the outbox. Neither side sees
the other's Redis, tensors or clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from thinkstream_client.outcome import FinishReason, JobFailure, TokenLogprobs
from thinkstream_client.records import JobRef

from .sampling import ResolvedSampling


class JobKey(NamedTuple):
    """One life of one job in one replica.

    A job that comes back after another claim has another marker. One that was dropped and is found to be
    ours still has the same marker and another life here. So what comes late of a former life can always be
    told from the new one.

    Attributes:
        ref: The job.
        mk: The marker that its claim wrote.
        life: What else tells it from a former one; 0 in what Redis names, which knows nothing of lives.
    """

    ref: JobRef
    mk: int
    life: int = 0

    @property
    def claim(self) -> JobKey:
        """The ownership as Redis knows it."""
        return self._replace(life=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Take up a job.

    Attributes:
        key: The ownership.
        prompt_ids: The whole prompt, tokenized.
        published_ids: Tokens that are already in the result stream; decoding goes on behind them.
        sampling: Every field filled in.
        alone: The job is suspected of killing its worker: no other sequence shares its steps.
    """

    key: JobKey
    prompt_ids: tuple[int, ...]
    published_ids: tuple[int, ...] = ()
    sampling: ResolvedSampling
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Forget a sequence, silently: whoever gives this order has dealt with the stream."""

    key: JobKey


Order = Submit | Stop


@dataclass(frozen=True, slots=True)
class TokenOut:
    """One sampled token.

    Attributes:
        key: Whose.
        index: Its place in the result, from 1.
        token_id: The token.
        logprobs: Where asked for.
    """

    key: JobKey
    index: int
    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceEnd:
    """A sequence's own end, after its last token."""

    key: JobKey
    reason: FinishReason
    error: JobFailure | None = None


class Started(NamedTuple):
    """A sequence whose prefill begins.

    Attributes:
        key: Whose.
        num_cached_tokens: Tokens of its prompt that the prefix cache spares.
    """

    key: JobKey
    num_cached_tokens: int


@dataclass(slots=True)
class StepOutput:
    """All that one step brought, in the order of the batch.

    ``started`` lists the sequences whose prefill begins. It comes in an output of its own before their
    first step is done, so that the Publisher, which has the clock, can time it.
    """

    tokens: list[TokenOut] = field(default_factory=list["TokenOut"])
    ends: list[SequenceEnd] = field(default_factory=list["SequenceEnd"])
    started: list[Started] = field(default_factory=list["Started"])
