"""What is said of a job that failed: the error's code and data, which the client makes an error of again."""

from __future__ import annotations

from thinkstream_client.errors import InvalidRequest, PromptTooLong, RecordInvalid, ThinkstreamError
from thinkstream_client.outcome import JobFailure

_MAX_SHOWN = 80
_FINAL_CODES = frozenset({InvalidRequest.code, PromptTooLong.code, RecordInvalid.code})


def failure_of(error: ThinkstreamError) -> JobFailure:
    """An error of ours as it travels; of a request's value only a short text does."""
    data: dict[str, int | str]
    match error:
        case PromptTooLong():
            data = {"num_tokens": error.num_tokens, "limit": error.limit}
        case InvalidRequest():
            value = error.value if isinstance(error.value, str) else repr(error.value)
            data = {"field": error.field, "value": value[:_MAX_SHOWN], "allowed": error.allowed}
        case _:
            data = {}
    return JobFailure(code=error.code, message=str(error), data=data)


def is_final(failure: JobFailure) -> bool:
    """Whether another attempt would meet the same error."""
    return failure.code in _FINAL_CODES
