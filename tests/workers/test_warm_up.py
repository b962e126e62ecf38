from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from typing import cast

import pytest

from thinkstream_client.errors import ServiceUnavailable
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_workers.engine import Engine
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import SequenceEnd, StepOutput, Submit
from thinkstream_workers.warm_up import WarmUp, affordable_tokens


class HandEngine:
    """Ends each order at once, as told, on a clock that moves by its prompt."""

    def __init__(
        self, *, s_per_token: float = 0.0, error: JobFailure | None = None, max_context: int = 512
    ) -> None:
        self.max_context = max_context
        self.now_s, self._s_per_token, self._error = 0.0, s_per_token, error
        self.orders: list[Submit] = []
        self.limits: list[int] = []
        self.outbox = Outbox()

    def put(self, order: Submit) -> None:
        self.orders.append(order)
        self.now_s += len(order.prompt_ids) * self._s_per_token
        end = SequenceEnd(key=order.key, reason=FinishReason.LENGTH, error=self._error)
        self.outbox.put(StepOutput(ends=[end]), 0.0)

    def limit_step(self, num_tokens: int) -> int:
        self.limits.append(num_tokens)
        return num_tokens

    def warm_up(self) -> WarmUp:
        return WarmUp(
            cast("Engine", self),
            cast("Inbox", self),
            self.outbox,
            is_stopping=lambda: False,
            clock=lambda: self.now_s,
        )


@pytest.mark.parametrize(
    ("s_per_token", "limits"),
    [(0.0, []), (1.25 / 512, []), (1.25 / 128, [128]), (0.5, [2])],
)
def test_a_step_takes_a_quarter_of_the_lease_at_most(s_per_token: float, limits: Sequence[int]) -> None:
    engine = HandEngine(s_per_token=s_per_token)
    warm_up = engine.warm_up()
    warm_up.run()
    warm_up.size_step(5_000, num_seqs=2, usual_tokens=512)
    assert [len(order.prompt_ids) for order in engine.orders] == [2, 64]
    assert engine.limits == limits


def test_slots_that_outlast_the_lease_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        HandEngine(s_per_token=0.1).warm_up().size_step(5_000, num_seqs=25, usual_tokens=512)
        assert caplog.text == ""
        HandEngine(s_per_token=0.1).warm_up().size_step(5_000, num_seqs=26, usual_tokens=512)
    assert "a step of 26 sequences may take longer than half of the lease of 5.0 s" in caplog.text


def test_what_a_start_has_made_is_not_looked_through_again() -> None:
    gc.unfreeze()
    try:
        HandEngine().warm_up().run()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("max_context", [2, 3, 4, 5])
def test_the_shortest_context_has_room_for_every_prompt(max_context: int) -> None:
    engine = HandEngine(max_context=max_context)
    warm_up = engine.warm_up()
    warm_up.run()
    warm_up.size_step(5_000, num_seqs=2, usual_tokens=512)
    assert {len(order.prompt_ids) for order in engine.orders} <= {*range(1, max_context)}


def test_a_first_step_that_fails_is_told() -> None:
    engine = HandEngine(error=JobFailure(code="StepFailed", message="no such kernel"))
    with pytest.raises(ServiceUnavailable, match="first step failed: no such kernel"):
        engine.warm_up().run()


def test_an_engine_that_died_is_not_waited_for() -> None:
    engine = cast("Engine", HandEngine())
    warm_up = WarmUp(engine, Inbox(), Outbox(), is_stopping=lambda: True)
    with pytest.raises(ServiceUnavailable, match="failed at its first step"):
        warm_up.run()


def test_a_clock_too_coarse_to_tell_limits_nothing() -> None:
    assert affordable_tokens(64, 0.0, 5_000) > 1_000_000
