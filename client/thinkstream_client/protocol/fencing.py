"""What all calls of a session share: a name for a job, and that Redis may not know the session any more."""

from __future__ import annotations

from typing import Any

from thinkstream_client.errors import Fenced
from thinkstream_client.records import JobRef


def member(ref: JobRef) -> str:
    """Returns a job's name within its partition."""
    return f"{ref.tenant}:{ref.job_id}"


def unless_fenced(reply: Any) -> Any:
    """Returns a reply.

    Raises:
        Fenced: It says that Redis does not know the session.
    """
    if reply and reply[0] == b"FENCED":
        raise Fenced("Redis does not know this session any more")
    return reply
