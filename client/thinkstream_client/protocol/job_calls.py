"""Calls that clients make about one job: submit, cancel, confirm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thinkstream_client.errors import Conflict, InvalidRequest, JobNotFound, QueueFull, RecordInvalid
from thinkstream_client.keys import Keys, check_name
from thinkstream_client.outcome import JobStatus
from thinkstream_client.records import PRIORITIES, JobRef, Request

from .call import Call, function_call
from .wire_request import encode_request, request_digest

DEFAULT_RESULT_TTL_MS = 3_600_000
MAX_RESULT_TTL_MS = 30 * 86_400_000
MAX_DEADLINE_MS = 365 * 86_400_000
DEFAULT_MAX_TOKENS = 1024
_BYTES_PER_TOKEN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What became of a submission.

    Attributes:
        created: False where the same job had been submitted before.
        status: The job's status now.
    """

    created: bool
    status: JobStatus


def prompt_cost(request: Request) -> int:
    """The prompt's part of ``job_cost``."""
    if request.token_ids is not None:
        return len(request.token_ids)
    return -(-request.num_prompt_bytes // _BYTES_PER_TOKEN)


def job_cost(request: Request) -> int:
    """What a job is charged in its tenant's share, in tokens; exact for ids, an estimate for text."""
    return prompt_cost(request) + (request.sampling.max_tokens or DEFAULT_MAX_TOKENS)


def submit(
    keys: Keys,
    ref: JobRef,
    request: Request,
    *,
    priority: int = 1,
    deadline_ms: int | None = None,
    result_ttl_ms: int = DEFAULT_RESULT_TTL_MS,
    batch: str | None = None,
) -> Call[Submitted]:
    """Adds a job to its tenant's queue; the same job again changes nothing.

    Args:
        keys: Names of the keys.
        ref: The job.
        request: What it asks for.
        priority: 0 high, 1 normal, 2 low.
        deadline_ms: Time from now, by the server's clock, after which the job is not wanted any more.
        result_ttl_ms: How long the result stays after the job's end.
        batch: The batch that it belongs to; no part of what tells one payload from another.

    The call raises:
        Conflict: The id is taken by a job with another payload.
        QueueFull: A cap of the tenant is reached.
        InvalidRequest: The deadline has passed.

    Raises:
        InvalidRequest: A name, the priority or a time is outside its range.
    """
    _check_names(ref, request.tags, batch)
    _check_range("priority", priority, 0, len(PRIORITIES) - 1)
    _check_range("result_ttl_ms", result_ttl_ms, 1, MAX_RESULT_TTL_MS)
    if deadline_ms is not None:
        _check_range("deadline_ms", deadline_ms, -MAX_DEADLINE_MS, MAX_DEADLINE_MS)
    args = function_call(
        "submit",
        keys.prefix(keys.partition_of(ref)),
        ref.tenant,
        ref.job_id,
        request_digest(request),
        encode_request(request),
        request.grain,
        f"{job_cost(request)}:{prompt_cost(request)}",
        priority,
        "" if deadline_ms is None else deadline_ms,
        result_ttl_ms,
        batch or "",
        *dict.fromkeys(request.tags),
    )
    return Call(args, lambda reply: _submitted(reply, ref, deadline_ms))


def cancel(keys: Keys, ref: JobRef) -> Call[JobStatus]:
    """Seals the job's result; a job that has ended stays as it is.

    The call returns the status afterwards and raises:
        JobNotFound: No job has this id.
    """

    def parse(reply: Any) -> JobStatus:
        return JobStatus(_unless_missing(ref, reply)[1].decode())

    return Call(function_call("cancel", keys.prefix(keys.partition_of(ref)), ref.tenant, ref.job_id), parse)


def confirm(keys: Keys, ref: JobRef) -> Call[None]:
    """Writes a field of the job, so that ``durable`` on the same connection means something.

    The call raises:
        JobNotFound: No job has this id.
    """

    def parse(reply: Any) -> None:
        _unless_missing(ref, reply)

    return Call(function_call("confirm", keys.prefix(keys.partition_of(ref)), ref.tenant, ref.job_id), parse)


def durable(
    key: str = "", *, num_local: int = 1, num_replicas: int = 0, timeout_ms: int = 2000
) -> Call[bool]:
    """Waits until what this connection wrote is on disk; goes into one ``run_many`` behind ``confirm``.

    Args:
        key: What was written, which says whose disk it is in a Cluster.
        num_local: Whether the server's own disk counts: 0 or 1.
        num_replicas: Replicas that must have it on theirs.
        timeout_ms: How long to wait.

    The call returns whether it got there in time and raises:
        ConfigError: The server has no WAITAOF (before Redis 7.2) or keeps no append-only file.
    """

    def parse(reply: Any) -> bool:
        on_disk, on_replicas = reply
        return bool(on_disk >= num_local and on_replicas >= num_replicas)

    return Call(("WAITAOF", num_local, num_replicas, timeout_ms), parse, key)


def _submitted(reply: Any, ref: JobRef, deadline_ms: int | None) -> Submitted:
    match reply:
        case [b"OK" | b"EXISTS" as code, status]:
            return Submitted(created=code == b"OK", status=JobStatus(status.decode()))
        case [b"CONFLICT"]:
            raise Conflict(ref.job_id)
        case [b"FULL", cap, retry_ms]:
            raise QueueFull(cap.decode(), retry_ms)
        case [b"DEADLINE"]:
            raise InvalidRequest("deadline_ms", deadline_ms, "a time to come")
        case _:
            raise RecordInvalid(f"submit of job {ref.job_id}: unknown reply")


def _check_names(ref: JobRef, tags: Sequence[str], batch: str | None) -> None:
    check_name("tenant", ref.tenant)
    check_name("job_id", ref.job_id)
    for tag in tags:
        check_name("tags", tag)
    if batch is not None:
        check_name("batch", batch)


def _unless_missing(ref: JobRef, reply: Any) -> list[Any]:
    if reply[0] == b"MISSING":
        raise JobNotFound(ref.job_id)
    if reply[0] == b"BROKEN":
        raise RecordInvalid(f"job {ref.job_id}: its hash is not a job's")
    return reply  # type: ignore[no-any-return]


def _check_range(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(field, value, f"an integer in [{low}, {high}]")
