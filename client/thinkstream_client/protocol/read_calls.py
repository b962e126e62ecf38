"""Calls that read jobs and their results and change nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinkstream_client.checks import check_integer
from thinkstream_client.errors import JobNotFound, RecordInvalid
from thinkstream_client.keys import Keys, check_name
from thinkstream_client.outcome import FinishReason, JobFailure, JobStatus
from thinkstream_client.records import PRIORITIES, JobRef, SessionId

from .call import Call, function_call
from .wire import RawEntry, decode_failure, parse_stream_entry

logger = logging.getLogger(__name__)

MAX_LISTED = 1_000_000
"""Jobs that one call lists at most."""

_MAX_DIGITS = 15
_INFO_FIELDS = (
    "status",
    "n",
    "claim_n",
    "mk",
    "grain",
    "attempts",
    "claims",
    "suspect",
    "priority",
    "owner",
    "submitted",
    "claimed",
    "finished",
    "deadline",
    "ttl",
    "cost",
    "tags",
    "reason",
    "error",
    "note",
    "payload",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """A job as its hash tells it.

    Attributes:
        ref: The job.
        status: Where it is in its life.
        n: Tokens of the result once it has ended, before that those at the last claim.
        mk: Markers in its stream.
        grain: Tokens per entry of its stream.
        attempts: Deaths and failures without progress counted against it.
        claims: How often it was claimed.
        suspect: Its last owner died without anybody known to be the cause.
        priority: Its class.
        owner: The session that runs it.
        submitted_ms: Server time of its submission; so the others.
        claimed_ms: Of the last claim.
        finished_ms: Of its end.
        deadline_at_ms: When it expires.
        result_ttl_ms: How long the result stays after the end.
        cost: Tokens it is charged with when it starts.
        tags: Its labels.
        reason: Why it ended.
        failure: Why it failed, for good or last time.
        note: What the owner noted: the sampling as resolved, as JSON.
        payload: Its request as bytes; None once it has ended.
    """

    ref: JobRef
    status: JobStatus
    n: int
    mk: int
    grain: int
    attempts: int
    claims: int
    suspect: bool
    priority: int
    owner: SessionId | None
    submitted_ms: int
    claimed_ms: int | None
    finished_ms: int | None
    deadline_at_ms: int | None
    result_ttl_ms: int
    cost: int
    tags: tuple[str, ...]
    reason: FinishReason | None
    failure: JobFailure | None
    note: str | None
    payload: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """A line of a list of jobs; fields as in ``JobInfo``."""

    ref: JobRef
    status: JobStatus
    priority: int
    submitted_ms: int
    finished_ms: int | None
    n: int | None
    reason: FinishReason | None
    tags: tuple[str, ...]


def job_info(keys: Keys, ref: JobRef) -> Call[JobInfo]:
    """Reads a job's hash.

    The call raises:
        JobNotFound: No job has this id.
        RecordInvalid: The hash is not a job's.
    """

    def parse(reply: Any) -> JobInfo:
        if reply[0] is None:
            raise JobNotFound(ref.job_id)
        try:
            return _job_info(ref, dict(zip(_INFO_FIELDS, reply, strict=True)))
        except (TypeError, ValueError):
            raise RecordInvalid(f"job {ref.job_id}: its hash is not a job's") from None

    return Call(("HMGET", keys.job(ref), *_INFO_FIELDS), parse)


def job_status(keys: Keys, ref: JobRef) -> Call[JobStatus]:
    """Reads a job's status alone.

    The call raises:
        JobNotFound: No job has this id.
        RecordInvalid: The hash is not a job's.
    """

    def parse(reply: Any) -> JobStatus:
        if reply is None:
            raise JobNotFound(ref.job_id)
        try:
            return JobStatus(reply.decode())
        except ValueError:
            raise RecordInvalid(f"job {ref.job_id}: its hash is not a job's") from None

    return Call(("HGET", keys.job(ref), "status"), parse)


def list_jobs(
    keys: Keys, partition: int, tenant: str, *, tag: str | None = None, limit: int = 100
) -> Call[list[JobSummary]]:
    """Lists a tenant's jobs of one partition, those with a tag where one is given, newest first.

    Jobs are listed until a day after their result has gone. One whose hash is not a job's is left out, with a
    warning in the log: the others are no worse for it.

    Raises:
        InvalidRequest: A name or the limit is outside its range.
    """
    check_name("tenant", tenant)
    if tag is not None:
        check_name("tags", tag)
    check_integer("limit", limit, 1, MAX_LISTED)

    def parse(reply: Any) -> list[JobSummary]:
        return _job_summaries(tenant, reply)

    return Call(function_call("list", keys.prefix(partition), tenant, tag or "", limit), parse)


def read_results(
    keys: Keys,
    positions: Mapping[JobRef, int | tuple[int, int]],
    *,
    block_ms: int | None,
    count: int | None,
) -> Call[dict[JobRef, list[RawEntry]]]:
    """Reads what result streams hold behind given positions, of many jobs at once.

    Args:
        keys: Names of the keys.
        positions: Per job the tokens that were read, or those and the last marker that was read behind
            them: with the tokens alone a marker behind them is read each time.
        block_ms: How long to wait for the first entry, at least 1; None does not wait. A call that waits
            belongs on a connection made with ``blocking=True``.
        count: Entries per stream; None reads all.

    The call returns the streams that have something; in a Cluster all jobs must be of one partition.
    """
    refs = {keys.out(ref).encode(): ref for ref in positions}
    args: list[str | bytes | int] = ["XREAD"]
    if count is not None:
        args += ("COUNT", count)
    if block_ms is not None:
        args += ("BLOCK", max(1, block_ms))
    args += ("STREAMS", *refs, *(_entry_id(position) for position in positions.values()))

    def parse(reply: Any) -> dict[JobRef, list[RawEntry]]:
        return {
            refs[key]: [parse_stream_entry(entry_id, fields) for entry_id, fields in entries]
            for key, entries in reply or ()
        }

    return Call(tuple(args), parse)


def _entry_id(position: int | tuple[int, int]) -> str:
    num_tokens, mk = position if isinstance(position, tuple) else (position, 0)
    return f"{num_tokens}-{mk}"


def _integer(value: bytes | None) -> int:
    # Our own numbers are digits and no more: ``int`` would take signs, blanks and thousands of digits too.
    if value is None or not value.isdigit() or len(value) > _MAX_DIGITS:
        raise ValueError("not a number of ours")
    return int(value)


def _optional(value: bytes | None) -> int | None:
    return _integer(value) if value else None


def _priority(value: bytes | None) -> int:
    priority = _integer(value)
    if priority >= len(PRIORITIES):
        raise ValueError("not a class of ours")
    return priority


def _tags(value: bytes | None) -> tuple[str, ...]:
    return tuple(value.decode().split(":")) if value else ()


def _job_info(ref: JobRef, found: Mapping[str, Any]) -> JobInfo:
    ended = _optional(found["n"])
    return JobInfo(
        ref=ref,
        status=JobStatus(found["status"].decode()),
        n=(_optional(found["claim_n"]) or 0) if ended is None else ended,
        mk=_integer(found["mk"]),
        grain=_integer(found["grain"]),
        attempts=_integer(found["attempts"]),
        claims=_integer(found["claims"]),
        suspect=found["suspect"] == b"1",
        priority=_priority(found["priority"]),
        owner=SessionId(found["owner"].decode()) if found["owner"] else None,
        submitted_ms=_integer(found["submitted"]),
        claimed_ms=_optional(found["claimed"]),
        finished_ms=_optional(found["finished"]),
        deadline_at_ms=_optional(found["deadline"]),
        result_ttl_ms=_integer(found["ttl"]),
        cost=_integer(found["cost"]),
        tags=_tags(found["tags"]),
        reason=FinishReason(found["reason"].decode()) if found["reason"] else None,
        failure=decode_failure(found["error"]) if found["error"] else None,
        note=found["note"].decode() if found["note"] else None,
        payload=found["payload"],
    )


def _job_summaries(tenant: str, rows: Sequence[Any]) -> list[JobSummary]:
    found: list[JobSummary] = []
    broken: list[bytes] = []
    for row in rows:
        try:
            found.append(_job_summary(tenant, row))
        except (TypeError, ValueError):
            broken.append(row[0])
    if broken:
        logger.warning(
            "left out %d jobs of tenant %s whose hashes are not a job's: %s", len(broken), tenant, broken[:10]
        )
    return found


def _job_summary(tenant: str, row: Any) -> JobSummary:
    job_id, status, priority, submitted, finished, n, reason, tags = row
    return JobSummary(
        ref=JobRef(tenant, job_id.decode()),
        status=JobStatus(status.decode()),
        priority=_priority(priority),
        submitted_ms=_integer(submitted),
        finished_ms=_optional(finished),
        n=_optional(n),
        reason=FinishReason(reason.decode()) if reason else None,
        tags=_tags(tags),
    )
