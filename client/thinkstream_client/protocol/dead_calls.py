"""Calls about dead letters: list, show, try again, drop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from thinkstream_client.errors import InvalidRequest, LetterNotFound, RecordInvalid
from thinkstream_client.keys import Keys
from thinkstream_client.outcome import JobFailure
from thinkstream_client.records import JobRef

from .call import Call, function_call
from .packing import amount
from .wire import decode_failure

MAX_LISTED = 10_000
"""Letters that one call lists; the queue keeps about a thousand."""

_LETTER_ID = re.compile(r"(([0-9]{1,20})-([0-9]{1,20}))(?:@([0-9]{1,4}))?")
_MAX_ID_PART = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A job that failed for good, or bytes in a queue that are no job.

    Attributes:
        partition: Where it is kept.
        entry_id: Its place there; the first part is server time in ms.
        ref: The job, as far as it is known.
        reason: Code of the error, or what was wrong with the entry.
        attempts: Attempts counted.
        payload: Its input.
        failure: The last error.
    """

    partition: int
    entry_id: str
    ref: JobRef
    reason: str
    attempts: int
    payload: bytes
    failure: JobFailure | None

    @property
    def id(self) -> str:
        """Its name for people: the place, with the partition where that is not the first."""
        return f"{self.entry_id}@{self.partition}" if self.partition else self.entry_id

    @property
    def died_ms(self) -> int:
        """Server time of its death."""
        return int(self.entry_id.partition("-")[0])


def letter_place(keys: Keys, letter_id: str) -> tuple[int, str]:
    """Returns the partition and the place that a letter's id names.

    Raises:
        InvalidRequest: It is no such id.
    """
    found = _LETTER_ID.fullmatch(letter_id)
    is_one = found is not None and max(int(found[2]), int(found[3])) <= _MAX_ID_PART
    if found is None or not is_one or int(found[4] or 0) >= keys.num_partitions:
        raise InvalidRequest("letter", letter_id, "an id as `thinkstream dead list` prints it")
    return int(found[4] or 0), found[1]


def dead_letters(keys: Keys, partition: int, *, limit: int = 100) -> Call[list[DeadLetter]]:
    """Lists dead letters, newest first.

    Raises:
        InvalidRequest: ``limit`` is none that could be listed at one time.
    """
    if not 1 <= limit <= MAX_LISTED:
        raise InvalidRequest("limit", limit, f"an integer in [1, {MAX_LISTED}]")

    def parse(reply: Any) -> list[DeadLetter]:
        return [_dead_letter(partition, *entry) for entry in reply]

    return Call(("XREVRANGE", keys.dead(partition), "+", "-", "COUNT", limit), parse)


def dead_letter(keys: Keys, letter_id: str) -> Call[DeadLetter]:
    """Reads one dead letter.

    The call raises:
        LetterNotFound: There is none of this id.

    Raises:
        InvalidRequest: It is no id of a letter.
    """
    partition, entry_id = letter_place(keys, letter_id)

    def parse(reply: Any) -> DeadLetter:
        if not reply:
            raise LetterNotFound(letter_id)
        return _dead_letter(partition, *reply[0])

    return Call(("XRANGE", keys.dead(partition), entry_id, entry_id), parse)


def dead_retry(keys: Keys, letter_id: str) -> Call[JobRef]:
    """Puts a letter's job in line again and removes the letter.

    The job keeps its id and goes on behind the tokens that it published. Its attempts begin at zero; it has
    no deadline any more, and stays out of its batch, which has counted it. No cap of the tenant holds it up.

    The call returns the job and raises:
        LetterNotFound: There is no letter of this id.
        InvalidRequest: Its job lives or has ended otherwise since.
        RecordInvalid: The letter holds nothing that could be tried, or what is not its job's.

    Raises:
        InvalidRequest: It is no id of a letter.
    """
    partition, entry_id = letter_place(keys, letter_id)

    def parse(reply: Any) -> JobRef:
        match reply:
            case [b"OK", tenant, job_id]:
                return JobRef(tenant.decode(), job_id.decode())
            case [b"MISSING"]:
                raise LetterNotFound(letter_id)
            case [b"OTHER", job_id, status]:
                allowed = f"one whose job is failed; job {job_id.decode()} is {status.decode()}"
                raise InvalidRequest("letter", letter_id, allowed)
            case _:
                raise RecordInvalid(f"dead letter {letter_id} holds no job that could be tried")

    return Call(function_call("dead_retry", keys.prefix(partition), entry_id), parse)


def dead_drop(keys: Keys, letter_id: str) -> Call[None]:
    """Removes a letter.

    The call raises:
        LetterNotFound: There is none of this id.

    Raises:
        InvalidRequest: It is no id of a letter.
    """
    partition, entry_id = letter_place(keys, letter_id)

    def parse(reply: Any) -> None:
        if reply[0] == b"MISSING":
            raise LetterNotFound(letter_id)

    return Call(function_call("dead_drop", keys.prefix(partition), entry_id), parse)


def _dead_letter(partition: int, entry_id: bytes, flat: Any) -> DeadLetter:
    found = {flat[i].decode(errors="replace"): flat[i + 1] for i in range(0, len(flat), 2)}
    failure = None
    if found.get("error"):
        try:
            failure = decode_failure(found["error"])
        except RecordInvalid:
            failure = None
    return DeadLetter(
        partition=partition,
        entry_id=entry_id.decode(),
        ref=JobRef(
            found.get("tenant", b"").decode(errors="replace"), found.get("job", b"").decode(errors="replace")
        ),
        reason=found.get("reason", b"").decode(errors="replace"),
        attempts=int(amount(found.get("attempts", b""))),
        payload=found.get("payload", b""),
        failure=failure,
    )
