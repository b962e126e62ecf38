from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import cast

import pytest

from thinkstream_client.errors import ServiceUnavailable
from thinkstream_client.outcome import FinishReason, JobFailure
from thinkstream_workers.engine import Engine
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import SequenceEnd, StepOutput, Submit
from thinkstream_workers.warm_up import WarmUp, affordable_tokens


class HandEngine:
    """Ends every order at once, as told, on a clock that moves by its prompt."""

    def __init__(
        self, *, s_per_token: float = 0.0, error: JobFailure | None = None, max_context: int = 512
    ) -> None:
        self.max_context = max_context
        self.now_s, self._s_per_token, self._error = 0.0, s_per_token, error
        self.batches: list[list[Submit]] = []
        self.limits: list[int] = []
        self.outbox = Outbox()

    def put_all(self, orders: Iterable[Submit]) -> None:
        self.batches.append(list(orders))
        for order in self.batches[-1]:
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
    assert [[len(order.prompt_ids) for order in orders] for orders in engine.batches] == [[2], [64]]
    assert engine.limits == limits


def test_slots_that_outlast_the_lease_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        HandEngine(s_per_token=0.1).warm_up().size_step(5_000, num_seqs=25, usual_tokens=512)
        assert caplog.text == ""
        HandEngine(s_per_token=0.1).warm_up().size_step(5_000, num_seqs=26, usual_tokens=512)
    assert "a step of 26 sequences may take longer than half of the lease of 5.0 s" in caplog.text


def rehearsed(num_seqs: int, *, max_context: int = 8_192) -> list[list[Submit]]:
    engine = HandEngine(max_context=max_context)
    engine.outbox = Outbox(max_outputs=1_000)
    engine.warm_up().rehearse(num_seqs, 2_048)
    return engine.batches


def test_a_rehearsal_meets_what_service_meets() -> None:
    batches = rehearsed(24)
    shapes = [(len(orders), max(len(order.prompt_ids) for order in orders)) for orders in batches]
    assert shapes[:6] == [(24, 2), (16, 2), (8, 2), (4, 2), (2, 2), (1, 2)]
    decoded = [
        shape for shape, orders in zip(shapes, batches, strict=True) if orders[0].sampling.max_tokens > 2
    ]
    assert {(1, 300), (24, 300), (1, 1_100), (24, 1_100)} < set(decoded)
    samplings = [orders[0].sampling for orders in batches if len(orders) == 24]
    assert any(sampling.top_k == 0 for sampling in samplings)
    assert any(sampling.logprobs and sampling.logit_bias for sampling in samplings)
    prompts = [
        shape[1] for shape, orders in zip(shapes, batches, strict=True) if orders[0].sampling.max_tokens == 1
    ]
    buckets = [*range(64, 513, 64), *range(640, 1_025, 128)]
    assert prompts == [*buckets, *buckets, 1_024, 2_048]


def test_no_long_prompt_of_a_rehearsal_is_in_the_prefix_cache() -> None:
    prompts = [order.prompt_ids for orders in rehearsed(4) for order in orders]
    beginnings = [prompt_ids[:16] for prompt_ids in prompts if len(prompt_ids) >= 16]
    assert len(set(beginnings)) == len(beginnings)


def test_a_rehearsal_stays_within_the_context() -> None:
    longest = max(
        len(order.prompt_ids) + order.sampling.max_tokens
        for orders in rehearsed(2, max_context=100)
        for order in orders
    )
    assert longest == 100


@pytest.mark.parametrize("max_context", [2, 3, 4, 5])
def test_the_shortest_context_has_room_for_every_prompt(max_context: int) -> None:
    engine = HandEngine(max_context=max_context)
    engine.outbox = Outbox(max_outputs=1_000)
    warm_up = engine.warm_up()
    warm_up.run()
    warm_up.rehearse(2, 2_048)
    warm_up.size_step(5_000, num_seqs=2, usual_tokens=512)
    lengths = {len(order.prompt_ids) for orders in engine.batches for order in orders}
    assert lengths <= {*range(1, max_context)}


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
