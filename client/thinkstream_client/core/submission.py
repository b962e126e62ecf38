"""A job on its way to the queue: its name, its payload, and what is left of its deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from thinkstream_client.errors import InvalidRequest
from thinkstream_client.keys import Keys, check_name
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.records import JobRef, Request

from .compose import deadline_ms, new_job_id, priority_number


@dataclass(slots=True)
class Submission:
    """A job's payload, kept so that the job can be submitted again.

    Attributes:
        ref: The job.
        request: What it asks for.
        priority: Number of its class.
        deadline_at_s: When it is too late, on this process's monotonic clock; None is never.
        deadline_s: The same as the caller gave it, counted from the submission.
        batch: The batch it belongs to.
        has_ended: Its end was seen. Whoever has seen it does not submit the job again.
    """

    ref: JobRef
    request: Request
    priority: int = 1
    deadline_at_s: float | None = None
    deadline_s: float | None = None
    batch: str | None = None
    has_ended: bool = False

    def call(self, keys: Keys) -> Call[functions.Submitted]:
        """Returns the command that submits it, with what is left of the deadline."""
        left_ms = None
        if self.deadline_at_s is not None:
            left_ms = round((self.deadline_at_s - time.monotonic()) * 1000)
        call = functions.submit(
            keys, self.ref, self.request, priority=self.priority, deadline_ms=left_ms, batch=self.batch
        )
        return replace(call, parse=partial(self._parsed, call))

    def _parsed(self, call: Call[functions.Submitted], reply: Any) -> functions.Submitted:
        try:
            return call.parse(reply)
        except InvalidRequest:  # of all fields the server looks at the deadline alone
            allowed = "a time that is not over before the job arrives"
            raise InvalidRequest("deadline_s", self.deadline_s, allowed) from None

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline_at_s is not None and time.monotonic() >= self.deadline_at_s


def job_ref(job_id: object, tenant: object) -> JobRef:
    """Returns a job's full name.

    Raises:
        InvalidRequest: One of the two is no name.
    """
    return JobRef(check_name("tenant", tenant), check_name("id", job_id))


def submission_of(
    request: Request,
    *,
    job_id: str | None,
    tenant: str,
    priority: str,
    deadline_s: float | None,
    batch: str | None = None,
) -> Submission:
    """Returns a job to be submitted, its deadline counted from now; without an id it gets a new one.

    Raises:
        InvalidRequest: A name, the class or the deadline is outside its range.
    """
    left_ms = deadline_ms(deadline_s)
    return Submission(
        ref=job_ref(new_job_id() if job_id is None else job_id, tenant),
        request=request,
        priority=priority_number(priority),
        deadline_at_s=None if left_ms is None else time.monotonic() + left_ms / 1000,
        deadline_s=deadline_s,
        batch=None if batch is None else check_name("batch", batch),
    )
