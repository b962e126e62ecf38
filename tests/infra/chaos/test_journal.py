"""What a reader wrote down outlives it, and the line that it died in does not count."""

from __future__ import annotations

from pathlib import Path

from infra.chaos.journal import Journal, Record, read_journal
from infra.chaos.plan import make_job, make_specs


def test_a_line_cut_off_by_a_kill_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert list(read_journal(path)) == []
    Journal(path).write(Record(kind="chunk", job=3, index=2, ids=(7, 8), crc=9, text="да"))
    with path.open("a") as torn:
        torn.write('{"kind": "end", "jo')
    assert [record.kind for record in read_journal(path)] == ["chunk"]

    Journal(path).write(Record(kind="end", job=3, index=2, reason="stop"))
    chunk, end = read_journal(path)
    assert (chunk.job, chunk.index, chunk.ids, chunk.crc, chunk.text) == (3, 2, (7, 8), 9, "да")
    assert (end.kind, end.reason) == ("end", "stop")
    assert 0 < chunk.at_s <= end.at_s


def test_a_seed_gives_the_same_jobs_again() -> None:
    jobs = [make_job(5, number, num_specs=8) for number in range(200)]
    assert jobs == [make_job(5, number, num_specs=8) for number in range(200)]
    assert make_specs(5, 8) == make_specs(5, 8) != make_specs(6, 8)
    assert {job.stream for job in jobs} == {True, False}
    assert any(job.cancel_after for job in jobs)
    assert any(job.deadline_s for job in jobs)
