"""Calls about a session itself: that it lives, and what the scheduler claims for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinkstream_client.keys import Keys
from thinkstream_client.records import JobRef, SessionId

from .call import Call, function_call
from .fencing import member, unless_fenced

MAX_LEASE_MS = 86_400_000
"""The longest lease that the functions know a session by: ``DAY_MS`` there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A job that a session has become the owner of.

    Attributes:
        ref: The job.
        mk: Markers in its stream, this claim's included.
        payload: Its request as bytes, not looked at yet.
        n: Tokens that former owners published.
        grain: Tokens per entry of its stream.
        claims: How often it has been claimed.
        suspect: Its last owner died: step it alone.
        submitted_ms: Server time of its submission.
        claimed_ms: Server time of this claim.
    """

    ref: JobRef
    mk: int
    payload: bytes
    n: int
    grain: int
    claims: int
    suspect: bool
    submitted_ms: int
    claimed_ms: int


def hello(
    keys: Keys,
    partition: int,
    session: SessionId,
    nonce: str,
    *,
    replica: str,
    slots: int,
    lease_ms: int,
    info: Mapping[str, str],
) -> Call[None]:
    """Makes a session known; the same one again renews it. A lease is at most ``MAX_LEASE_MS`` long.

    The call raises:
        Fenced: The name is another incarnation's.
    """
    pairs = [part for pair in info.items() for part in pair]
    args = function_call("hello", keys.prefix(partition), session, nonce, replica, slots, lease_ms, *pairs)
    return Call(args, _nothing)


def beat(
    keys: Keys,
    partition: int,
    session: SessionId,
    nonce: str,
    *,
    draining: bool = False,
    alone: JobRef | None = None,
    info: Mapping[str, str] | None = None,
) -> Call[dict[JobRef, int]]:
    """Renews the lease and tells whether the session drains and which suspect it steps alone.

    Args:
        keys: Names of the keys.
        partition: The partition.
        session: Who beats.
        nonce: What only that session knows.
        draining: Whether it takes no more jobs.
        alone: The suspect that it is about to step alone.
        info: What it tells about itself anew, beside what ``hello`` told: how much it has to do.

    The call returns the jobs that the session owns and the marker of each claim, and raises:
        Fenced: Redis does not know this session.
    """
    pairs = [part for pair in (info or {}).items() for part in pair]
    stepped = member(alone) if alone else ""
    args = function_call("beat", keys.prefix(partition), session, nonce, int(draining), stepped, *pairs)

    def parse(reply: Any) -> dict[JobRef, int]:
        owned = unless_fenced(reply)[1]
        return {_ref(owned[i]): int(owned[i + 1].partition(b":")[0]) for i in range(0, len(owned), 2)}

    return Call(args, parse)


def claim(keys: Keys, partition: int, session: SessionId, num_jobs: int) -> Call[list[Claimed]]:
    """Makes the session the owner of the next jobs, up to ``num_jobs`` and to its free slots.

    The call returns none for a session that drains, and raises:
        Fenced: Redis does not know the session, or its lease is over.
    """

    def parse(reply: Any) -> list[Claimed]:
        rows: list[Any] = unless_fenced(reply)[2:]
        return [_claimed(row, claimed_ms=reply[1]) for row in rows]

    return Call(function_call("claim", keys.prefix(partition), session, num_jobs), parse)


def bye(keys: Keys, partition: int, session: SessionId, nonce: str) -> Call[None]:
    """Ends a session; what it still owns is released.

    The call raises:
        Fenced: Redis does not know this session.
    """
    return Call(function_call("bye", keys.prefix(partition), session, nonce), _nothing)


def _claimed(row: Any, *, claimed_ms: int) -> Claimed:
    tenant, job_id, mk, payload, n, claims, suspect, submitted_ms, grain = row
    return Claimed(
        ref=JobRef(tenant.decode(), job_id.decode()),
        mk=mk,
        payload=payload,
        n=n,
        grain=grain,
        claims=claims,
        suspect=bool(suspect),
        submitted_ms=submitted_ms,
        claimed_ms=claimed_ms,
    )


def _ref(name: bytes) -> JobRef:
    tenant, _, job_id = name.decode().partition(":")
    return JobRef(tenant, job_id)


def _nothing(reply: Any) -> None:
    unless_fenced(reply)
