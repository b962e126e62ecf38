"""Calls about a session's jobs: its own, and the claim that the scheduler makes for it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from thinkstream_client.errors import Fenced
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_client.records import JobRef, SessionId

from .call import Call, function_call
from .wire import encode_failure

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


class StepRow(NamedTuple):
    """One entry for one job; a tuple, because there are many of them.

    Attributes:
        ref: The job.
        expected_len: Entries that its stream must have now, markers included.
        entry: A whole grain of tokens.
        mk: How many of those entries are markers.
        grain: Tokens per entry.
    """

    ref: JobRef
    expected_len: int
    entry: bytes
    mk: int
    grain: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRow:
    """The end of one job.

    Attributes:
        ref: The job.
        expected_len: Entries that its stream must have now, markers included.
        last_entry: Tokens not published yet, at most a grain; None where there are none.
        terminal: The entry that seals the stream.
        reason: Why the job ended.
        num_tokens: Tokens of the whole result.
        cost: What it really cost, in tokens of prompt and result.
    """

    ref: JobRef
    expected_len: int
    last_entry: bytes | None
    terminal: bytes
    reason: FinishReason
    num_tokens: int
    cost: int


class StepReply(enum.Enum):
    """What Redis did with a row."""

    OK = 1
    CAS = -1  #: the stream is not as long as expected: read it
    NOT_OURS = -2  #: the job is not this session's any more: it has ended, or another has it
    INVALID = -3  #: the end's number of tokens does not fit the stream


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
    member = _member(alone) if alone else ""
    args = function_call("beat", keys.prefix(partition), session, nonce, int(draining), member, *pairs)

    def parse(reply: Any) -> dict[JobRef, int]:
        owned = _unless_fenced(reply)[1]
        return {_ref(owned[i]): int(owned[i + 1].partition(b":")[0]) for i in range(0, len(owned), 2)}

    return Call(args, parse)


def claim(keys: Keys, partition: int, session: SessionId, num_jobs: int) -> Call[list[Claimed]]:
    """Makes the session the owner of the next jobs, up to ``num_jobs`` and to its free slots.

    The call returns none for a session that drains, and raises:
        Fenced: Redis does not know the session, or its lease is over.
    """

    def parse(reply: Any) -> list[Claimed]:
        rows: list[Any] = _unless_fenced(reply)[2:]
        return [_claimed(row, claimed_ms=reply[1]) for row in rows]

    return Call(function_call("claim", keys.prefix(partition), session, num_jobs), parse)


def step(
    keys: Keys, partition: int, session: SessionId, nonce: str, rows: Sequence[StepRow]
) -> Call[list[StepReply]]:
    """Appends one entry per job and renews the lease. Each row is taken or refused by itself.

    The call raises:
        Fenced: Redis does not know this session.
    """
    args: list[str | bytes | int] = ["FCALL", "ts1_step", 1, keys.prefix(partition), session, nonce]
    for (tenant, job_id), expected_len, entry, mk, grain in rows:
        # With one marker and a grain of one the length is the next index; that goes the shorter way.
        length = expected_len if mk == grain == 1 else f"{expected_len}:{mk}:{grain}"
        args += (f"{tenant}:{job_id}", length, entry)

    def parse(reply: Any) -> list[StepReply]:
        refused = _unless_fenced(reply)
        replies = [StepReply.OK] * len(rows)
        for i in range(0, len(refused), 2):
            replies[refused[i] - 1] = _STEP_REPLIES[refused[i + 1]]
        return replies

    return Call(tuple(args), parse)


def finish(
    keys: Keys, partition: int, session: SessionId, nonce: str, rows: Sequence[FinishRow]
) -> Call[list[StepReply]]:
    """Ends jobs: last entry, terminal, status, and the session owns them no longer.

    The call raises:
        Fenced: Redis does not know this session.
    """
    args: list[str | bytes | int] = ["FCALL", "ts1_finish", 1, keys.prefix(partition), session, nonce]
    for row in rows:
        args += (_member(row.ref), row.expected_len, row.last_entry or b"", row.terminal)
        args += (row.reason.value, row.num_tokens, row.cost)
    return Call(tuple(args), _step_replies)


def fail(
    keys: Keys,
    partition: int,
    session: SessionId,
    nonce: str,
    ref: JobRef,
    *,
    failure: JobFailure,
    retry: bool,
) -> Call[StepReply]:
    """Gives a job up: to be tried again later, or failed for good and kept as a dead letter.

    The third failure without progress is for good whatever ``retry`` says. The call raises:
        Fenced: Redis does not know this session.
    """
    packed = encode_failure(failure)
    args = function_call("fail", keys.prefix(partition), session, nonce, _member(ref), packed, int(retry))
    return Call(args, _first_reply)


def release(keys: Keys, partition: int, session: SessionId, nonce: str, refs: Iterable[JobRef]) -> Call[int]:
    """Puts jobs back into line, before those that never ran; counts no attempt.

    The call returns how many the session owned, and raises:
        Fenced: Redis does not know this session.
    """

    def parse(reply: Any) -> int:
        return int(_unless_fenced(reply)[1])

    members = [_member(ref) for ref in refs]
    return Call(function_call("release", keys.prefix(partition), session, nonce, *members), parse)


def note(
    keys: Keys, partition: int, session: SessionId, nonce: str, ref: JobRef, text: str
) -> Call[StepReply]:
    """Leaves the owner's note at a job, for ``inspect``: the sampling as resolved, as JSON.

    The call raises:
        Fenced: Redis does not know this session.
    """
    return Call(
        function_call("note", keys.prefix(partition), session, nonce, _member(ref), text), _first_reply
    )


def bye(keys: Keys, partition: int, session: SessionId, nonce: str) -> Call[None]:
    """Ends a session; what it still owns is released.

    The call raises:
        Fenced: Redis does not know this session.
    """
    return Call(function_call("bye", keys.prefix(partition), session, nonce), _nothing)


def _member(ref: JobRef) -> str:
    return f"{ref.tenant}:{ref.job_id}"


def _ref(member: bytes) -> JobRef:
    tenant, _, job_id = member.decode().partition(":")
    return JobRef(tenant, job_id)


def _unless_fenced(reply: Any) -> Any:
    if reply and reply[0] == b"FENCED":
        raise Fenced("Redis does not know this session any more")
    return reply


def _nothing(reply: Any) -> None:
    _unless_fenced(reply)


def _step_replies(reply: Any) -> list[StepReply]:
    return [_STEP_REPLIES[code] for code in _unless_fenced(reply)]


def _first_reply(reply: Any) -> StepReply:
    return _step_replies(reply)[0]


_STEP_REPLIES = {reply.value: reply for reply in StepReply}


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
