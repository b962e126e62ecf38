"""What a batch is told and what it tells: how its jobs are named and submitted, and how far they are."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from thinkstream_client.checks import check_integer
from thinkstream_client.errors import InvalidRequest
from thinkstream_client.keys import check_name
from thinkstream_client.records import JobRef, Request

from .compose import deadline_ms, priority_number
from .submission import Submission, submission_of

MAX_IN_FLIGHT = 1 << 20

_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How the jobs of a batch are submitted.

    Args:
        batch_id: First part of every job's id. The same batch under the same id finds its jobs again.
        tenant: Whose jobs they are.
        priority: Their class.
        deadline_s: Time each job has from its submission.
        max_in_flight: Jobs in the queue or at work at one time.

    Raises:
        InvalidRequest: A value outside its range.
    """

    batch_id: str
    tenant: str = "default"
    priority: str = "normal"
    deadline_s: float | None = None
    max_in_flight: int = 1024

    def __post_init__(self) -> None:
        if not isinstance(self.batch_id, str) or not _SAFE_ID.fullmatch(self.batch_id):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest("batch_id", self.batch_id, "1 to 63 of A-Z a-z 0-9 . _ -")
        check_name("tenant", self.tenant)
        priority_number(self.priority)
        deadline_ms(self.deadline_s)
        check_integer("max_in_flight", self.max_in_flight, 1, MAX_IN_FLIGHT)

    def job_id(self, custom_id: str) -> str:
        """Returns the id of an item's job: the same one each time."""
        if not _SAFE_ID.fullmatch(custom_id):
            custom_id = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return f"{self.batch_id}.{custom_id}"

    def submission(self, ref: JobRef, request: Request) -> Submission:
        """Returns a job of this batch, its deadline counted from now."""
        return submission_of(
            request,
            job_id=ref.job_id,
            tenant=ref.tenant,
            priority=self.priority,
            deadline_s=self.deadline_s,
            batch=self.batch_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        submitted: Jobs given to the queue.
        started: Those of them that a replica has taken up.
        done: Those that ended well.
        failed: Items without a result, for whatever reason.
        tokens: Tokens that came.
    """

    submitted: int = 0
    started: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0
