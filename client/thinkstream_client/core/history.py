"""Who had a job and how it ended, as its result stream tells: what the job's hash only counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thinkstream_client.outcome import Finish
from thinkstream_client.protocol.wire import Marker, RawEntry, Terminal
from thinkstream_client.records import SessionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """A session's claim of a job.

    Attributes:
        number: How often the job had been claimed with this one. Claims without a marker are missing: those
            of a job that Redis lost and that was submitted again.
        session: Whose claim it was.
        claimed_ms: Server time of the claim.
        num_tokens: Tokens that were there, from which it went on.
    """

    number: int
    session: SessionId
    claimed_ms: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHistory:
    """What a result stream tells beside the result; nothing once it has expired.

    Attributes:
        tenures: Who had the job, in order.
        finish: How it ended, with usage and timings.
    """

    tenures: tuple[Tenure, ...] = ()
    finish: Finish | None = None


def history_of(entries: Iterable[RawEntry]) -> JobHistory:
    """Returns what a stream, read whole, tells; entries that are not ours are passed over."""
    tenures: list[Tenure] = []
    finish: Finish | None = None
    for entry in entries:
        match entry:
            case Marker():
                tenures.append(
                    Tenure(
                        number=entry.claims,
                        session=entry.session,
                        claimed_ms=entry.claimed_ms,
                        num_tokens=entry.num_tokens,
                    )
                )
            case Terminal():
                finish = entry.finish
            case _:
                continue
    return JobHistory(tenures=tuple(tenures), finish=finish)
