"""Calls about the jobs that a session owns: their tokens, their ends, and giving them back."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from thinkstream_client.keys import Keys
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_client.records import JobRef, SessionId

from .call import Call, function_call
from .fencing import member, unless_fenced
from .wire import encode_failure


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
        refused = unless_fenced(reply)
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
        args += (member(row.ref), row.expected_len, row.last_entry or b"", row.terminal)
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
    args = function_call("fail", keys.prefix(partition), session, nonce, member(ref), packed, int(retry))
    return Call(args, _first_reply)


def release(keys: Keys, partition: int, session: SessionId, nonce: str, refs: Iterable[JobRef]) -> Call[int]:
    """Puts jobs back into line, before those that never ran; counts no attempt.

    The call returns how many the session owned, and raises:
        Fenced: Redis does not know this session.
    """

    def parse(reply: Any) -> int:
        return int(unless_fenced(reply)[1])

    members = [member(ref) for ref in refs]
    return Call(function_call("release", keys.prefix(partition), session, nonce, *members), parse)


def note(
    keys: Keys, partition: int, session: SessionId, nonce: str, ref: JobRef, text: str
) -> Call[StepReply]:
    """Leaves the owner's note at a job, for ``inspect``: the sampling as resolved, as JSON.

    The call raises:
        Fenced: Redis does not know this session.
    """
    return Call(
        function_call("note", keys.prefix(partition), session, nonce, member(ref), text), _first_reply
    )


_STEP_REPLIES = {reply.value: reply for reply in StepReply}


def _step_replies(reply: Any) -> list[StepReply]:
    return [_STEP_REPLIES[code] for code in unless_fenced(reply)]


def _first_reply(reply: Any) -> StepReply:
    return _step_replies(reply)[0]
