"""Every command that thinkstream sends to Redis, as typed builders of ``Call``.

Writing is done by the functions library in ``lua/``, and by nothing else. Each builder belongs to one
partition, or to one job, whose partition ``Keys`` knows; loops over partitions are the callers'.
"""

from __future__ import annotations

from .batch_calls import BatchEnd, batch_close, batch_exists, read_batch_end
from .call import Call
from .dead_calls import DeadLetter, dead_drop, dead_letter, dead_letters, dead_retry
from .job_calls import Submitted, cancel, confirm, durable, job_cost, submit
from .owner_calls import FinishRow, StepReply, StepRow, fail, finish, note, release, step
from .read_calls import JobInfo, JobSummary, job_info, job_status, list_jobs, read_results
from .session_calls import Claimed, beat, bye, claim, hello
from .status_calls import (
    Backlog,
    ClassBacklog,
    Event,
    SessionInfo,
    TenantInfo,
    backlog,
    read_events,
    sessions,
    tenants,
)
from .upkeep_calls import (
    Meta,
    Swept,
    context_claim,
    context_get,
    meta_claim,
    meta_get,
    reap,
    sweep,
    tenant_drop,
    tenant_set,
)

__all__ = [
    "Backlog",
    "BatchEnd",
    "Call",
    "Claimed",
    "ClassBacklog",
    "DeadLetter",
    "Event",
    "FinishRow",
    "JobInfo",
    "JobSummary",
    "Meta",
    "SessionInfo",
    "StepReply",
    "StepRow",
    "Submitted",
    "Swept",
    "TenantInfo",
    "backlog",
    "batch_close",
    "batch_exists",
    "beat",
    "bye",
    "cancel",
    "claim",
    "confirm",
    "context_claim",
    "context_get",
    "dead_drop",
    "dead_letter",
    "dead_letters",
    "dead_retry",
    "durable",
    "fail",
    "finish",
    "hello",
    "job_cost",
    "job_info",
    "job_status",
    "list_jobs",
    "meta_claim",
    "meta_get",
    "note",
    "read_batch_end",
    "read_events",
    "read_results",
    "reap",
    "release",
    "sessions",
    "step",
    "submit",
    "sweep",
    "tenant_drop",
    "tenant_set",
    "tenants",
]
