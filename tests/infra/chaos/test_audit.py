"""The audit sees what it is there for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from infra.chaos.audit import Received, judge, read_kept, received_by_job
from infra.chaos.journal import Record
from infra.chaos.plan import JobPlan
from infra.chaos.undisturbed import Undisturbed

from thinkstream_client.outcome import Finish, FinishReason
from thinkstream_client.protocol.wire import Entry, Marker, RawEntry, Terminal, chain_crc, initial_crc
from thinkstream_client.records import SessionId

JOB = "job"
IDS = (5, 6, 7, 8)
UNDISTURBED = Undisturbed(ids=list(IDS), text="abcd", reason="length")


def plan(cancel_after: int | None = None) -> JobPlan:
    return JobPlan(
        number=0,
        job_id=JOB,
        tenant="alice",
        priority="normal",
        stream=True,
        spec=0,
        cancel_after=cancel_after,
        deadline_s=None,
    )


def crc_of(ids: Sequence[int]) -> int:
    return chain_crc(initial_crc(JOB), ids)


def stream(ids: Sequence[int] = IDS, reason: FinishReason = FinishReason.LENGTH) -> list[RawEntry]:
    marker = Marker(num_tokens=0, mk=1, claims=1, session=SessionId("r.1"), claimed_ms=0)
    entries = [
        Entry(index=i, token_ids=(token,), crc=crc_of(ids[:i]), text=chr(92 + token))
        for i, token in enumerate(ids, 1)
    ]
    return [marker, *entries, Terminal(Finish(reason=reason, num_tokens=len(ids)))]


def chunk(index: int, *ids: int) -> Record:
    text = "".join(chr(92 + token) for token in ids)
    return Record(kind="chunk", index=index, ids=ids, crc=crc_of(IDS[:index]), text=text)


def end(index: int, reason: str = "length") -> Record:
    return Record(kind="end", index=index, reason=reason)


def received(*records: Record) -> Received:
    return received_by_job([Record(kind="begin"), *records])[0]


def judged(*records: Record, entries: Sequence[RawEntry] | None = None) -> Counter[str]:
    return judge(plan(), received(*records), read_kept(JOB, entries or stream()), UNDISTURBED)


def test_all_is_well() -> None:
    assert not judged(chunk(2, 5, 6), Record(kind="up"), chunk(3, 7), chunk(4, 8), end(4))


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        ([chunk(1, 5), chunk(3, 7), chunk(4, 8), end(4)], "lost"),
        ([chunk(2, 5, 6), end(2)], "lost"),
        ([chunk(2, 5, 6), chunk(2, 5, 6), chunk(4, 7, 8), end(4)], "doubled"),
        ([chunk(2, 5, 6), chunk(4, 7, 8), chunk(2, 6, 5), end(4)], "reordered"),
        ([chunk(2, 5, 6), chunk(4, 7, 9), end(4)], "changed"),
        ([chunk(2, 5, 6), chunk(4, 7, 8), end(4, "stop")], "changed"),
        ([chunk(2, 5, 6), end(2, "cancelled")], "changed"),
        ([chunk(2, 5, 6)], "stuck"),
    ],
)
def test_what_a_reader_may_meet(records: list[Record], wrong: str) -> None:
    assert judged(*records)[wrong] > 0


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        (stream((5, 6, 7)), "doubled"),  # the reader has one that nobody keeps
        (stream((5, 6, 7, 9)), "changed"),
        ([*stream()[:2], *stream()[3:]], "lost"),
        ([*stream()[:3], *stream()[2:]], "doubled"),
        ([*stream(), stream()[-2]], "reordered"),
        (stream(reason=FinishReason.STOP), "changed"),
    ],
)
def test_what_redis_may_hold(entries: list[RawEntry], wrong: str) -> None:
    assert judged(chunk(4, *IDS), end(4), entries=entries)[wrong] > 0


def test_a_cancelled_job_is_a_beginning_of_the_whole() -> None:
    asked = plan(cancel_after=2)
    kept = read_kept(JOB, stream(IDS[:2], FinishReason.CANCELLED))
    cancelled = Record(kind="cancel", index=2, reason="cancelled")
    assert not judge(asked, received(chunk(2, 5, 6), cancelled, end(2, "cancelled")), kept, UNDISTURBED)
    # What comes after `cancel` has returned is more than the stream's end may name.
    late = received(chunk(2, 5, 6), cancelled, chunk(3, 7), end(3, "cancelled"))
    assert judge(asked, late, kept, UNDISTURBED)["doubled"] == 1
    longer = read_kept(JOB, stream(IDS[:3], FinishReason.CANCELLED))
    assert judge(asked, late, longer, UNDISTURBED)["late"] == 1


def test_after_a_fork_only_what_was_read_again_counts() -> None:
    assert not judged(chunk(2, 5, 9), Record(kind="fork", index=1), chunk(4, *IDS), end(4))


def test_held_back_text_that_was_not_followed_by_a_written_end_counts_once() -> None:
    tail = Record(kind="chunk", index=4, crc=crc_of(IDS), text="!")
    whole = Undisturbed(ids=list(IDS), text="abcd!", reason="length")
    terminal = Terminal(Finish(reason=FinishReason.LENGTH, num_tokens=4, text="!"))
    kept = read_kept(JOB, [*stream()[:-1], terminal])
    assert not judge(plan(), received(chunk(4, *IDS), tail, Record(kind="up"), tail, end(4)), kept, whole)
