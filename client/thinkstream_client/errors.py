"""Every error that thinkstream raises on purpose.

    ThinkstreamError
    ├── RequestError                the request cannot be taken as it is; sending it again changes nothing
    │   ├── InvalidRequest          field, value, allowed
    │   ├── PromptTooLong           num_tokens, limit
    │   ├── BatchNotFound           batch_id
    │   ├── LetterNotFound          letter_id
    │   └── Conflict                job_id: the id is taken by another payload
    ├── JobError                    one job's own end or absence
    │   ├── JobNotFound
    │   ├── ResultExpired
    │   ├── StreamForked            at: Redis went back, and another history followed
    │   ├── JobCancelled
    │   ├── JobExpired
    │   └── JobFailed               error_code, detail, data: what the worker said
    ├── ServiceError                try again later
    │   ├── QueueFull               retry_ms
    │   └── ServiceUnavailable
    ├── CommandRefused              Redis will not do what it was asked, however often it is
    ├── RecordInvalid               bytes that are not one of our records
    ├── Fenced                      this session may not write any more
    └── ConfigError (ValueError)    the installation is wrong; nothing is retried
        └── WeightsError

Each class has a stable ``code``, the word that travels on the wire, and carries data, not only text. Two more
codes travel that no class has; they reach the caller as the ``error_code`` of ``JobFailed``:

    StepFailed      a Python error in the model's step, which the job alone provoked each time it was tried
    WorkerDied      the worker's process died each time it stepped the job
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .outcome import JobResult

_MAX_SHOWN = 80


def shown(value: object) -> str:
    """Returns a value as a message shows it: shortened, and by its type alone where it cannot be written."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits, for one
        return f"a value of type {type(value).__name__}"
    return shortened(text)


def shortened(text: str) -> str:
    """Returns a text as a message shows it: its beginning where it is long."""
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


class ThinkstreamError(Exception):
    """Root of the tree.

    Attributes:
        partial: What the job had brought before this ended it; None where no result was being read.
    """

    code: ClassVar[str] = "ThinkstreamError"
    partial: JobResult | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by text and attributes, so that a subclass may take whatever arguments it likes."""
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[ThinkstreamError], args: tuple[object, ...]) -> ThinkstreamError:
    return kind.__new__(kind, *args)


class RequestError(ThinkstreamError):
    """The request cannot be taken as it is."""

    code = "RequestError"


class InvalidRequest(RequestError):
    """A field of a request has a value outside its range.

    Args:
        field: Name of the field, dotted where nested (``sampling.top_p``).
        value: What was given; shown shortened.
        allowed: The range in words (``a number in (0, 1]``).
    """

    code = "InvalidRequest"

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: got {shown(value)}, allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class PromptTooLong(RequestError):
    """The prompt does not fit the model's context."""

    code = "PromptTooLong"

    def __init__(self, num_tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {num_tokens} tokens, the limit is {limit}")
        self.num_tokens, self.limit = num_tokens, limit


class Conflict(RequestError):
    """The job id is taken by a job with another payload."""

    code = "Conflict"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} exists with another payload")
        self.job_id = job_id


class BatchNotFound(RequestError):
    """No batch has this id, or it ended more than a day ago."""

    code = "BatchNotFound"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"batch {batch_id}: not found")
        self.batch_id = batch_id


class LetterNotFound(RequestError):
    """No dead letter has this id: it was retried or dropped, or never was."""

    code = "LetterNotFound"

    def __init__(self, letter_id: str) -> None:
        super().__init__(f"dead letter {letter_id}: not found")
        self.letter_id = letter_id


class JobError(ThinkstreamError):
    """One job's own end or absence."""

    code = "JobError"

    def __init__(self, job_id: str, detail: str) -> None:
        super().__init__(f"job {job_id}: {detail}")
        self.job_id = job_id


class JobNotFound(JobError):
    """No job has this id."""

    code = "JobNotFound"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, "not found")


class ResultExpired(JobError):
    """The job ended and its result has been removed since."""

    code = "ResultExpired"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, "its result has expired")


class StreamForked(JobError):
    """Redis lost tokens that were already read, and another history followed.

    Args:
        job_id: The job.
        at: Number of tokens up to which the reader's history is known to hold.
    """

    code = "StreamForked"

    def __init__(self, job_id: str, at: int) -> None:
        super().__init__(job_id, f"the stream changed behind token {at}: Redis lost acknowledged writes")
        self.at = at


class JobCancelled(JobError):
    """The job was cancelled."""

    code = "JobCancelled"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, "was cancelled")


class JobExpired(JobError):
    """The job's deadline passed before it ended."""

    code = "JobExpired"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, "its deadline passed")


class JobFailed(JobError):
    """The job failed for good.

    Args:
        job_id: The job.
        error_code: Code of the error that ended it: of this tree, ``StepFailed`` or ``WorkerDied``.
        detail: What the worker said.
        data: The data of that error.
    """

    code = "JobFailed"

    def __init__(
        self, job_id: str, error_code: str, detail: str, data: Mapping[str, int | str] | None = None
    ) -> None:
        super().__init__(job_id, f"failed with {error_code}: {detail}")
        self.error_code, self.detail, self.data = error_code, detail, dict(data or {})


class ServiceError(ThinkstreamError):
    """The service cannot do it now; try again later."""

    code = "ServiceError"


class QueueFull(ServiceError):
    """A cap of the tenant is reached.

    Args:
        cap: Which cap (``jobs``, ``bytes``, ``memory``).
        retry_ms: When there may be room, as an estimate.
    """

    code = "QueueFull"

    def __init__(self, cap: str, retry_ms: int) -> None:
        super().__init__(f"the tenant's queue is full ({cap}); try again in {retry_ms} ms")
        self.cap, self.retry_ms = cap, retry_ms


class ServiceUnavailable(ServiceError):
    """Redis cannot be reached, or no replica is alive."""

    code = "ServiceUnavailable"


class CommandRefused(ThinkstreamError):
    """Redis will not do what it was asked: arguments that it does not take, an error in a function."""

    code = "CommandRefused"


class RecordInvalid(ThinkstreamError):
    """Bytes that are not a record of ours: not msgpack, nested too deep, another version."""

    code = "RecordInvalid"


class Fenced(ThinkstreamError):
    """Redis no longer knows this session: what it owned belongs to others now."""

    code = "Fenced"


class ConfigError(ThinkstreamError, ValueError):
    """The installation is wrong: a server's setting, a namespace of another model, a missing file."""

    code = "ConfigError"


class WeightsError(ConfigError):
    """A checkpoint's tensors are missing, surplus or mis-shaped."""

    code = "WeightsError"
