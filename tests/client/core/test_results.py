from __future__ import annotations

from thinkstream_client.core.results import error_of, failure_error
from thinkstream_client.errors import InvalidRequest, JobFailed, PromptTooLong
from thinkstream_client.outcome import Finish, FinishReason, JobFailure


def test_what_the_worker_refused_names_the_field() -> None:
    message = "sampling.logit_bias: got 151999, allowed: ids below 151936"
    data = {"field": "sampling.logit_bias", "allowed": "ids below 151936", "value": "151999"}
    failure = JobFailure(code="InvalidRequest", message=message, data=data)
    error = failure_error("j", failure)
    assert isinstance(error, InvalidRequest) and str(error) == message
    assert (error.field, error.value, error.allowed) == ("sampling.logit_bias", "151999", "ids below 151936")
    del data["value"]  # an older worker sends none
    error = failure_error("j", JobFailure(code="InvalidRequest", message=message, data=data))
    assert isinstance(error, InvalidRequest) and error.value is None and str(error) == message


def test_a_prompt_that_was_too_long() -> None:
    data = {"num_tokens": 9, "limit": 4}
    error = failure_error("j", JobFailure(code="PromptTooLong", message="too long", data=data))
    assert isinstance(error, PromptTooLong) and (error.num_tokens, error.limit) == (9, 4)


def test_any_other_failure_keeps_its_code_and_data() -> None:
    failure = JobFailure(code="WorkerDied", message="its worker died", data={"attempts": 3})
    error = error_of("j", Finish(reason=FinishReason.FAILED, num_tokens=0, error=failure))
    assert isinstance(error, JobFailed)
    assert (error.error_code, error.detail, error.data) == ("WorkerDied", "its worker died", {"attempts": 3})
    for code in ("InvalidRequest", "PromptTooLong"):  # without the data that makes them one
        bare = failure_error("j", JobFailure(code=code, message="no"))
        assert isinstance(bare, JobFailed) and (bare.error_code, bare.data) == (code, {})
