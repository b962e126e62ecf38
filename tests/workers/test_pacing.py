"""How long the host may wait before it chooses the next step, on a clock of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkstream_workers.pacing import Pace

MARGIN_S = 0.002
KIND, OTHER = "32 rows", "64 rows"


class Steps:
    """A device that does one step behind the other, and a host that launches each while the last one runs."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pace = Pace(lambda: self.now_s)
        self.pace.launched(None, is_late=False)

    def do(self, kind: Hashable, *times_s: float, is_late: bool = False) -> float:
        """Launches steps of a kind; as the last of them begins, says how long the host may wait."""
        spare_s = 0.0
        for time_s in times_s:
            self.pace.launched(kind, is_late=is_late)
            self.pace.ended()
            spare_s = self.pace.spare_s
            self.now_s += time_s
        return spare_s


def test_it_waits_until_shortly_before_the_step_ends() -> None:
    steps = Steps()
    steps.do(KIND, *[0.020] * 4)
    assert steps.do(KIND, 0.005) == pytest.approx(0.020 - MARGIN_S)
    assert steps.pace.spare_s == pytest.approx(0.015 - MARGIN_S)
    steps.now_s += 0.014
    assert steps.pace.spare_s == 0.0


def test_nothing_is_waited_for_where_too_little_is_known() -> None:
    steps = Steps()
    assert steps.pace.spare_s == 0.0
    assert [steps.do(KIND, 0.020) for _ in range(4)] == [0.0] * 4
    assert [steps.do(None, 0.020) for _ in range(9)] == [0.0] * 9
    assert steps.do(OTHER, 0.020) == 0.0
    assert steps.do(KIND, 0.020) > 0.0


def test_nothing_is_waited_for_where_no_step_is_launched_behind_another() -> None:
    steps = Steps()
    steps.do(KIND, *[0.020] * 5)
    steps.pace.ended()
    assert steps.pace.spare_s == 0.0
    for _ in range(9):
        steps.pace.launched(KIND, is_late=False)
        assert steps.pace.spare_s == 0.0
        steps.now_s += 0.020
        steps.pace.ended()


def test_short_steps_are_not_waited_for() -> None:
    assert Steps().do(KIND, *[0.005] * 9) == 0.0


def test_one_slow_step_makes_no_other_late() -> None:
    steps = Steps()
    steps.do(KIND, *[0.020] * 5)
    steps.do(KIND, 0.500)
    for _ in range(9):
        assert steps.do(KIND, 0.020) == pytest.approx(0.020 - MARGIN_S)


def test_the_slow_first_steps_of_a_kind_do_not_count() -> None:
    steps = Steps()
    steps.do(KIND, 0.300, 0.100, 0.020, 0.020)
    assert steps.do(KIND, 0.020) == pytest.approx(0.020 - MARGIN_S)


@given(st.lists(st.floats(0.001, 0.2), min_size=5, max_size=30))
def test_it_never_waits_longer_than_the_quickest_of_the_last_few_took(times_s: list[float]) -> None:
    steps = Steps()
    for number, time_s in enumerate(times_s):
        spare_s = steps.do(KIND, time_s)
        assert spare_s <= max(0.0, min(times_s[max(0, number - 4) : number], default=0.0) - MARGIN_S) + 1e-9


def test_a_device_that_had_to_wait_is_given_more_time_for_a_while() -> None:
    steps = Steps()
    steps.do(KIND, *[0.020] * 5)
    steps.do(KIND, 0.020, is_late=True)
    assert steps.do(KIND, *[0.020] * 5) == pytest.approx(0.017, abs=1e-5)
    assert steps.do(KIND, *[0.020] * 250) == pytest.approx(0.0175, abs=1e-5)
    assert steps.do(KIND, *[0.020] * 500) == pytest.approx(0.020 - MARGIN_S)
    for _ in range(30):
        steps.do(KIND, 0.020, is_late=True)
        steps.do(KIND, *[0.020] * 5)
    assert steps.do(KIND, 0.020) == pytest.approx(0.0, abs=1e-4)
    assert steps.do(KIND, *[0.020] * 9_500) == pytest.approx(0.020 - MARGIN_S)


@pytest.mark.parametrize("slow_s", [0.1, 0.3, 3.0])
def test_steps_that_were_slow_for_a_while_are_not_made_slow_by_waiting(slow_s: float) -> None:
    """A device and a host that waits as long as it is told: what is measured depends on the wait."""
    now_s, ends_s = 100.0, [0.0]
    pace = Pace(lambda: now_s)
    pace.launched(KIND, is_late=False)
    ends_s.append(now_s + 0.020)
    began_s: list[float] = []
    for step in range(60):
        began_s.append(now_s)
        now_s += pace.spare_s
        pace.launched(KIND, is_late=ends_s[-1] <= now_s)
        ends_s.append(max(now_s, ends_s[-1]) + (slow_s if 20 <= step < 25 else 0.020))
        now_s = max(now_s, ends_s[-2])
        pace.ended()
    lasted_s = [after - before for before, after in itertools.pairwise(began_s)]
    assert sum(time_s > 0.021 for time_s in lasted_s) <= 5 + 1
    assert lasted_s[30:] == pytest.approx([0.020] * len(lasted_s[30:]))
    assert pace.spare_s > 0.015


def test_that_a_kind_met_for_the_first_time_is_late_says_nothing() -> None:
    steps = Steps()
    steps.do(KIND, *[0.020] * 5)
    steps.do(None, *[0.050] * 9, is_late=True)
    steps.do(OTHER, *[0.050] * 4, is_late=True)
    assert steps.do(KIND, 0.020) == pytest.approx(0.020 - MARGIN_S)


def test_late_steps_that_nobody_waits_for_teach_nothing() -> None:
    steps = Steps()
    steps.do(KIND, *[0.020] * 5)
    steps.do(OTHER, *[0.003] * 5)
    steps.do(OTHER, *[0.003] * 20, is_late=True)
    steps.do(KIND, 0.020)
    assert steps.do(KIND, 0.020) == pytest.approx(0.020 - MARGIN_S)
