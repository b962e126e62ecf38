from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinkstream_client.records import SessionId
from thinkstream_scheduler.policy import spread, turns
from thinkstream_scheduler.roster import Roster

A, B, C = SessionId("a"), SessionId("b"), SessionId("c")


def test_the_emptiest_session_is_served_first() -> None:
    assert spread({A: 1, B: 4}, 2) == {B: 2}


def test_jobs_leave_the_free_slots_level() -> None:
    assert spread({A: 8, B: 4, C: 1}, 8) == {A: 6, B: 2}


def test_equally_free_sessions_share_and_the_odd_job_goes_to_the_first_by_name() -> None:
    assert spread({B: 4, A: 4}, 5) == {A: 3, B: 2}


def test_more_jobs_than_slots_fill_every_slot() -> None:
    assert spread({A: 2, B: 0, C: 3}, 100) == {A: 2, C: 3}


def test_nothing_to_give_or_nowhere_to_give_it() -> None:
    assert spread({}, 5) == {}
    assert spread({A: 3}, 0) == {}
    assert spread({A: -2, B: 0}, 5) == {}


@given(
    st.dictionaries(st.sampled_from("abcdefgh").map(SessionId), st.integers(-3, 40), max_size=8),
    st.integers(0, 200),
)
def test_spread_is_what_giving_one_by_one_to_the_emptiest_gives(
    free: dict[SessionId, int], num_jobs: int
) -> None:
    left = dict(free)
    expected: dict[SessionId, int] = {}
    for _ in range(num_jobs):
        open_sessions = [s for s in left if left[s] > 0]
        if not open_sessions:
            break
        emptiest = min(open_sessions, key=lambda s: (-left[s], s))
        left[emptiest] -= 1
        expected[emptiest] = expected.get(emptiest, 0) + 1
    assert spread(free, num_jobs) == expected


def test_a_replica_that_served_is_replaced_at_once() -> None:
    roster = Roster(["x"], restart_min_s=1.0, restart_max_s=8.0)
    assert roster.due(0.0) == ["x"]
    roster.note_death("x", 5.0, was_ready=True)
    assert roster.due(5.0) == ["x"]


def test_a_replica_that_never_loads_is_started_ever_more_rarely() -> None:
    roster = Roster(["x", "y"], restart_min_s=1.0, restart_max_s=3.0)
    waits: list[float] = []
    for _ in range(4):
        roster.note_death("x", 0.0, was_ready=False)
        waits.append(next(t / 10 for t in range(100) if "x" in roster.due(t / 10)))
        assert "y" in roster.due(0.0)
    assert waits == [1.0, 2.0, 3.0, 3.0]
    roster.note_ready("x")
    roster.note_death("x", 0.0, was_ready=False)
    assert roster.due(0.9) == ["y"]
    assert roster.due(1.0) == ["x", "y"]


def test_a_stranger_s_death_changes_nothing() -> None:
    roster = Roster(["x"], restart_min_s=1.0, restart_max_s=3.0)
    roster.note_death("stranger", 0.0, was_ready=False)
    assert roster.due(0.0) == ["x"]


def test_one_partition_is_served_whole() -> None:
    assert list(turns({0: (2, 0, 5)}, 4, 7)) == [(0, 7)]
    assert list(turns({}, 4, 1)) == []


def test_partitions_are_served_by_class_and_by_shares() -> None:
    waiting = {0: (0, 9, 0), 1: (1, 2, 0), 2: (0, 0, 4)}
    assert list(turns(waiting, 6, 0)) == [(1, 1), (0, 3), (1, 2), (0, 6), (2, 4)]
    assert [partition for partition, _ in turns(waiting, 6, 1)][:2] == [1, 1]  # another begins each time


def test_every_partition_has_its_turn() -> None:
    """With one free slot at a time nobody is passed over: over as many turns each partition comes first."""
    waiting = dict.fromkeys(range(16), (0, 100, 0))
    assert {next(turns(waiting, 1, turn))[0] for turn in range(16)} == set(range(16))
