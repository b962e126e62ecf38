"""What becomes of a job: its status, its tokens as they come, its end, and all of that together.

Plain frozen data that whoever makes it answers for: nothing here is checked, so nothing is known of errors.
How it looks as bytes is ``wire``'s business.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class JobStatus(enum.StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"  #: in its tenant's queue, or in line again after its worker died
    RUNNING = "running"  #: owned by a living session
    WAITING = "waiting"  #: failed once, will be tried again
    DONE = "done"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended and will not change any more."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.WAITING)


class FinishReason(enum.StrEnum):
    """Why a job ended."""

    STOP = "stop"  #: end of text, a stop id or a stop string
    LENGTH = "length"  #: ``max_tokens`` or the context is full
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def status(self) -> JobStatus:
        """The job's status after this end."""
        if self in (FinishReason.STOP, FinishReason.LENGTH):
            return JobStatus.DONE
        return JobStatus(self.value)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one token: its own and those of the most likely ids."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """Some tokens of a result, next to each other.

    Attributes:
        index: Number of tokens of the result up to and with this chunk.
        token_ids: The tokens, the last of which is the ``index``-th of the result.
        text: What became readable with them; empty while a character or a stop string may be under way.
        logprobs: One per token where the request asked for them.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a job used."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a job's time went, in milliseconds of its last owner's clock."""

    queued_ms: int = 0
    prefill_ms: int = 0
    first_token_ms: int = 0
    decode_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """Why a job failed: a code of the error tree, a sentence, and the data of the error."""

    code: str
    message: str
    data: Mapping[str, int | str] = field(default_factory=dict[str, "int | str"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The end of a result.

    Attributes:
        reason: Why it ended.
        num_tokens: Tokens of the whole result.
        text: The last of the text, held back until now.
        usage: Tokens used.
        timings: Where the time went.
        error: Why it failed, for ``FinishReason.FAILED``.
    """

    reason: FinishReason
    num_tokens: int
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    error: JobFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A whole result, or as much of it as there is.

    Attributes:
        job_id: The job.
        text: The readable text; what a stop string cut off is not in it.
        token_ids: Every token, those behind the text's end among them.
        logprobs: One per token where the request asked for them.
        finish_reason: Why it ended; None where the reader stopped before the end.
        usage: Tokens used.
        timings: Where the time went.
    """

    job_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
