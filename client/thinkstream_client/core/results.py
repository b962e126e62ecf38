"""What a job brought, put together from its chunks; and the error that its end stands for."""

from __future__ import annotations

from dataclasses import dataclass

from thinkstream_client.errors import (
    InvalidRequest,
    JobCancelled,
    JobExpired,
    JobFailed,
    PromptTooLong,
    ThinkstreamError,
)
from thinkstream_client.outcome import (
    Finish,
    FinishReason,
    JobFailure,
    JobResult,
    Timings,
    TokenChunk,
    TokenLogprobs,
    Usage,
)

from .compose import BatchItem

MAX_REWINDS = 3
"""How often a result of which nobody has seen a token is read again because Redis went back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What came of one item of a batch; exactly one of ``result`` and ``error`` is there.

    Attributes:
        item: The item.
        job_id: Its job; empty where none was submitted.
        result: What it brought.
        error: Why it brought nothing, with what there was in ``error.partial``.
    """

    item: BatchItem
    job_id: str = ""
    result: JobResult | None = None
    error: ThinkstreamError | None = None

    @property
    def custom_id(self) -> str:
        """The caller's name for the item."""
        return self.item.custom_id

    @property
    def text(self) -> str:
        """The readable text, as far as there is any."""
        there = self.result or (self.error and self.error.partial)
        return there.text if there else ""


class ResultBuilder:
    """Gathers the chunks of one job, in order, from the first on.

    Args:
        job_id: The job.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return len(self._ids)

    def add(self, chunk: TokenChunk) -> None:
        """Appends a chunk."""
        self._text.append(chunk.text)
        self._ids.extend(chunk.token_ids)
        self._logprobs.extend(chunk.logprobs or ())

    def build(self, finish: Finish | None = None) -> JobResult:
        """Returns what there is, with the end if it was reached."""
        return JobResult(
            job_id=self._job_id,
            text="".join(self._text),
            token_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs) or None,
            finish_reason=finish.reason if finish else None,
            usage=finish.usage if finish else Usage(),
            timings=finish.timings if finish else Timings(),
        )


def error_of(job_id: str, finish: Finish) -> ThinkstreamError | None:
    """Returns the error that an end stands for, or None where the job is done."""
    match finish.reason:
        case FinishReason.STOP | FinishReason.LENGTH:
            return None
        case FinishReason.CANCELLED:
            return JobCancelled(job_id)
        case FinishReason.EXPIRED:
            return JobExpired(job_id)
        case FinishReason.FAILED:
            return failure_error(
                job_id, finish.error or JobFailure(code="JobFailed", message="no reason given")
            )


def failure_error(job_id: str, failure: JobFailure) -> ThinkstreamError:
    """Returns the error of our tree that a worker's failure names.

    Of a request's value only a short text travels, so that an ``InvalidRequest`` keeps the worker's message.
    """
    match failure.code, failure.data:
        case PromptTooLong.code, {"num_tokens": int(num_tokens), "limit": int(limit)}:
            return PromptTooLong(num_tokens, limit)
        case InvalidRequest.code, {"field": str(field_name), "allowed": str(allowed), **rest}:
            error = InvalidRequest(field_name, rest.get("value"), allowed)
            error.args = (failure.message,)
            return error
        case _:
            return JobFailed(job_id, failure.code, failure.message, failure.data)
