"""What ``--json`` prints. Names that scripts rely on: they stay when records inside change theirs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

from thinkstream_client.core.history import JobHistory
from thinkstream_client.errors import RecordInvalid, RequestError, ThinkstreamError
from thinkstream_client.outcome import JobFailure, JobResult, Timings, Usage
from thinkstream_client.protocol.functions import (
    Backlog,
    DeadLetter,
    JobInfo,
    JobSummary,
    SessionInfo,
    TenantInfo,
)
from thinkstream_client.protocol.wire_request import decode_request
from thinkstream_client.records import PRIORITIES, JobRef


def result_object(ref: JobRef, result: JobResult, error: ThinkstreamError | None = None) -> dict[str, Any]:
    """Returns a result, or what there is of it with the error that ended it."""
    shown = dataclasses.asdict(result)
    del shown["job_id"]
    told = None if error is None else {"code": error.code, "message": str(error)}
    return {"id": ref.job_id, "tenant": ref.tenant, **shown, "error": told}


def job_object(info: JobInfo, history: JobHistory) -> dict[str, Any]:
    """Returns all about a job. Times are the server's, in ms since 1970."""
    end = history.finish
    return {
        "id": info.ref.job_id,
        "tenant": info.ref.tenant,
        "status": info.status,
        "finish_reason": info.reason,
        "priority": PRIORITIES[info.priority],
        "tags": info.tags,
        "num_tokens": info.n,
        "attempts": info.attempts,
        "claims": info.claims,
        "suspect": info.suspect,
        "owner": info.owner,
        "submitted_ms": info.submitted_ms,
        "claimed_ms": info.claimed_ms,
        "finished_ms": info.finished_ms,
        "deadline_ms": info.deadline_at_ms,
        "result_ttl_ms": info.result_ttl_ms,
        "cost": info.cost,
        "grain": info.grain,
        "payload_bytes": None if info.payload is None else len(info.payload),
        "sampling": _sampling(info.note),
        "error": _failure(info.failure),
        "usage": None if end is None or end.usage == Usage() else dataclasses.asdict(end.usage),
        "timings": None if end is None or end.timings == Timings() else dataclasses.asdict(end.timings),
        "tenures": [dataclasses.asdict(one) for one in history.tenures],
    }


def summary_object(job: JobSummary) -> dict[str, Any]:
    """Returns a line of a list of jobs."""
    return {
        "id": job.ref.job_id,
        "tenant": job.ref.tenant,
        "status": job.status,
        "finish_reason": job.reason,
        "priority": PRIORITIES[job.priority],
        "tags": job.tags,
        "num_tokens": job.n,
        "submitted_ms": job.submitted_ms,
        "finished_ms": job.finished_ms,
    }


def replica_object(session: SessionInfo) -> dict[str, Any]:
    """Returns a living replica."""
    return {
        "replica": session.replica,
        "session": session.session,
        "running": session.owned,
        "slots": session.slots,
        "draining": session.draining,
        "lease_left_ms": session.lease_left_ms,
        "since_ms": session.since_ms,
        "load": session.load,
        "info": {name: value for name, value in session.info.items() if name not in session.load},
    }


def letter_object(letter: DeadLetter, *, with_request: bool = False) -> dict[str, Any]:
    """Returns a dead letter; ``request`` is null where its bytes are none."""
    shown = {
        "letter": letter.id,
        "id": letter.ref.job_id,
        "tenant": letter.ref.tenant,
        "died_ms": letter.died_ms,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "payload_bytes": len(letter.payload),
        "error": _failure(letter.failure),
    }
    return shown | ({"request": _request(letter.payload)} if with_request else {})


def queues_object(backlog: Backlog) -> dict[str, Any]:
    """Returns what waits and runs."""
    classes: dict[str, Any] = {}
    for priority, name in enumerate(PRIORITIES):
        found = backlog.classes.get(priority)
        classes[name] = {"waiting": found.num_jobs if found else 0, "again": found.again if found else 0}
    return {
        "classes": classes,
        "running": backlog.running,
        "retrying": backlog.retrying,
        "dead_letters": backlog.dead,
    }


def tenant_object(tenant: TenantInfo) -> dict[str, Any]:
    """Returns a tenant's settings, 0 for a cap that is not set, and what it uses."""
    return {
        "tenant": tenant.tenant,
        "weight": tenant.weight,
        "max_jobs": tenant.max_jobs,
        "max_bytes": tenant.max_bytes,
        "max_running": tenant.max_running,
        "max_tokens_per_s": tenant.max_tokens_per_s,
        "waiting": tenant.num_queued,
        "waiting_bytes": tenant.num_queued_bytes,
        "running": tenant.num_running,
    }


def _sampling(note: str | None) -> dict[str, Any]:
    try:
        found = json.loads(note or "{}")
    except (ValueError, RecursionError):
        found = {}  # nobody but a replica writes it, and there it is JSON
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _failure(failure: JobFailure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"code": failure.code, "message": failure.message, "data": dict(failure.data)}


def _request(payload: bytes) -> dict[str, Any] | None:
    try:
        request = decode_request(payload)
    except (RecordInvalid, RequestError):
        return None  # it may be what the letter is dead of
    return dataclasses.asdict(request)
