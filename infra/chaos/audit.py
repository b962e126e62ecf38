"""Compares what each reader received with what Redis holds and with what nobody disturbed.

Counts tokens for what was lost, doubled, reordered, changed or came behind the end that a cancel wrote, and
jobs for what was stuck. Knows no process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from thinkstream_client.protocol.wire import (
    Broken,
    Entry,
    Marker,
    RawEntry,
    Terminal,
    chain_crc,
    initial_crc,
)

from .journal import Record
from .plan import JobPlan
from .undisturbed import Undisturbed

DONE = ("stop", "length")
WRONGS = ("lost", "doubled", "reordered", "changed", "late", "stuck")


@dataclass(slots=True)
class Received:
    """What a reader wrote down of one job.

    Attributes:
        ids: The tokens in the order in which they came.
        text: Their text.
        crcs: The crc behind each index that a chunk ended at.
        arrivals: Index and time of each chunk, those before a fork too.
        reason: How it ended; empty if it has not.
        num_named: Tokens that the end names.
        cancelled: What `cancel` said; empty if it was not called or did not return.
        num_at_cancel: Tokens that the end names which stood there when it had returned: those that `cancel`
            itself counted as it wrote that end, so that one let in between the two is late. -1 if no end
            stood there. Where Redis had lost that end by then and another was written, the number is of the
            other, and tokens before it count as in time.
        num_forks: How often Redis went back under the reader's eyes.
        wrong: What is wrong with the order, in tokens.
    """

    ids: list[int] = field(default_factory=list[int])
    text: str = ""
    crcs: dict[int, int] = field(default_factory=dict[int, int])
    arrivals: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    reason: str = ""
    num_named: int = 0
    cancelled: str = ""
    num_at_cancel: int = -1
    num_forks: int = 0
    wrong: Counter[str] = field(default_factory=Counter[str])
    _tail: tuple[int, str] = (-1, "")

    def take(self, record: Record) -> None:
        """Takes the next record of this job."""
        match record.kind:
            case "chunk":
                self._take_chunk(record)
            case "fork":
                self.num_forks += 1
                self.ids.clear()
                self.crcs.clear()
                self.text, self._tail = "", (-1, "")
            case "cancel":
                self.cancelled, self.num_at_cancel = record.reason, record.index
            case "end":
                self.reason, self.num_named = record.reason, record.index
            case _:
                pass

    def _take_chunk(self, record: Record) -> None:
        ids, index, text = record.ids, record.index, record.text
        self.arrivals.append((index, record.at_s))
        gap = index - len(ids) - len(self.ids)
        if gap > 0:
            self.wrong["lost"] += gap
        elif gap < 0:
            same = list(ids) == self.ids[index - len(ids) : index]
            self.wrong["doubled" if same else "reordered"] += -gap
        if not ids and self._tail == (index, text):
            return  # the text that the end held back, read again because the end was not written down
        self._tail = (index, text) if not ids else (-1, "")
        self.ids.extend(ids)
        self.text += text
        self.crcs[index] = record.crc


def received_by_job(records: Iterable[Record]) -> dict[int, Received]:
    """Sorts a reader's records by job."""
    jobs: dict[int, Received] = {}
    for record in records:
        if record.kind != "up":
            jobs.setdefault(record.job, Received()).take(record)
    return jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What Redis holds of one job.

    Attributes:
        ids: All tokens.
        text: All text.
        crcs: The crc of each entry by its index.
        reason: How it ended; empty if it has not.
        markers: All claims.
        wrong: What is wrong with the stream itself.
    """

    ids: list[int]
    text: str
    crcs: dict[int, int]
    reason: str
    markers: list[Marker]
    wrong: Counter[str]


def read_kept(job_id: str, entries: Sequence[RawEntry]) -> Kept:
    """Reads a whole result stream and checks that it is one."""
    ids: list[int] = []
    crcs: dict[int, int] = {}
    markers: list[Marker] = []
    wrong: Counter[str] = Counter()
    text = reason = ""
    crc = initial_crc(job_id)
    for place, entry in enumerate(entries, 1):
        match entry:
            case Entry():
                ids.extend(entry.token_ids)
                text += entry.text
                crc = crcs[entry.index] = chain_crc(crc, entry.token_ids)
                wrong["lost"] += max(0, entry.index - len(ids))
                wrong["doubled"] += max(0, len(ids) - entry.index)
                wrong["changed"] += entry.crc != crc
            case Marker():
                markers.append(entry)
                wrong["lost"] += max(0, entry.num_tokens - len(ids))
            case Terminal():
                reason, text = entry.finish.reason.value, text + entry.finish.text
                wrong["lost"] += max(0, entry.finish.num_tokens - len(ids))
                wrong["reordered"] += place != len(entries)
            case Broken():
                wrong["changed"] += 1
    return Kept(ids=ids, text=text, crcs=crcs, reason=reason, markers=markers, wrong=+wrong)


def judge(plan: JobPlan, got: Received, kept: Kept, undisturbed: Undisturbed) -> Counter[str]:
    """What is wrong with one job, in tokens, or 1 where it is the job; nothing if all is well."""
    if not got.reason:
        return Counter(stuck=1)
    wrong = got.wrong + kept.wrong
    wrong["lost"] += max(0, got.num_named - len(got.ids)) + max(0, len(kept.ids) - len(got.ids))
    wrong["doubled"] += max(0, len(got.ids) - len(kept.ids))
    wrong["changed"] += _num_different(got.ids, kept.ids) + _num_different(got.ids, undisturbed.ids)
    wrong["changed"] += sum(kept.crcs.get(index, crc) != crc for index, crc in got.crcs.items())
    wrong["changed"] += got.reason != kept.reason
    if kept.reason == "cancelled" and got.num_at_cancel >= 0:
        wrong["late"] += max(0, len(kept.ids) - got.num_at_cancel)
    if got.reason in DONE:
        wrong["lost"] += max(0, len(undisturbed.ids) - len(got.ids))
        wrong["changed"] += (got.text, got.reason) != (undisturbed.text, undisturbed.reason)
        wrong["changed"] += kept.text != undisturbed.text
    else:
        wrong["changed"] += not _may_end_so(plan, got)
        wrong["changed"] += not undisturbed.text.startswith(got.text)
    return +wrong


def _may_end_so(plan: JobPlan, got: Received) -> bool:
    """Whether an end short of the whole was asked for."""
    if got.reason == "cancelled":
        return plan.cancel_after is not None and got.cancelled in ("", "cancelled")
    return got.reason == "expired" and plan.deadline_s is not None


def _num_different(ids: Sequence[int], others: Sequence[int]) -> int:
    """Places at which the shorter of two differs from the other."""
    return sum(a != b for a, b in zip(ids, others, strict=False))


def total(wrongs: Mapping[int, Counter[str]]) -> dict[str, int]:
    """The sums over all jobs."""
    sums: Counter[str] = Counter()
    for wrong in wrongs.values():
        sums.update(wrong)
    return {name: sums[name] for name in WRONGS}
