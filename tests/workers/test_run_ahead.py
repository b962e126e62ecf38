"""The engine with a step in flight, beside the same engine without."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.paper_device import (
    NO_NUMBERS,
    POISON,
    EagerInbox,
    Heard,
    PaperDevice,
    PaperPace,
    play,
)

from thinkstream_client.outcome import FinishReason
from thinkstream_client.records import JobRef
from thinkstream_workers import batcher as batcher_module
from thinkstream_workers.batch import Batch
from thinkstream_workers.batcher import Batcher
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.engine import Engine
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, Order, Started, Stop, Submit
from thinkstream_workers.rehearsal import Rehearsal
from thinkstream_workers.runner import ModelRunner
from thinkstream_workers.sampling import ResolvedSampling


def key_of(number: int) -> JobKey:
    return JobKey(JobRef("tenant", f"job-{number}"), 1)


def submit_of(
    number: int,
    prompt: Iterable[int] = (1, 2, 3),
    *,
    max_tokens: int = 8,
    stop_ids: Iterable[int] = (),
    penalty: float = 0.0,
    alone: bool = False,
) -> Submit:
    sampling = ResolvedSampling(
        max_tokens=max_tokens, stop_token_ids=frozenset(stop_ids), presence_penalty=penalty
    )
    return Submit(key=key_of(number), prompt_ids=tuple(prompt), sampling=sampling, alone=alone)


def play_both(
    turns: Sequence[Sequence[Order]], *, num_blocks: int = 64, budget: int = 16, max_context: int = 1000
) -> tuple[Heard, Heard]:
    """Runs the same orders in step and ahead, and sees that the same came of them."""
    in_step, ahead = (
        play(turns, run_ahead=run_ahead, num_blocks=num_blocks, budget=budget, max_context=max_context)
        for run_ahead in (False, True)
    )
    stopped = {order.key for orders in turns for order in orders if isinstance(order, Stop)}
    for key in in_step.tokens.keys() | ahead.tokens.keys():
        pairs = list(zip(in_step.tokens.get(key, []), ahead.tokens.get(key, []), strict=key not in stopped))
        assert all(one == other for one, other in pairs)
    ends = [{key: end for key, end in heard.ends.items() if key not in stopped} for heard in (in_step, ahead)]
    assert ends[0] == ends[1]
    for heard in (in_step, ahead):
        load = heard.engine.load
        assert (load.running, load.waiting, load.free_blocks) == (0, 0, load.num_blocks)
        assert load.tokens == sum(map(len, heard.tokens.values()))
    assert in_step.device.num_ahead == 0
    return in_step, ahead


def test_every_step_but_the_first_is_launched_ahead() -> None:
    _, ahead = play_both([[submit_of(1), submit_of(2, [4, 5])]])
    assert (ahead.device.num_launches, ahead.device.num_ahead) == (8, 7)
    assert [token.index for token in ahead.tokens[key_of(1)]] == list(range(1, 9))


def test_a_stop_id_is_known_one_step_too_late_and_nobody_hears_of_that_step() -> None:
    ids = play([[submit_of(1, max_tokens=50)]], run_ahead=False).ids(key_of(1))
    end = ids.index(ids[3])
    in_step, ahead = play_both([[submit_of(1, max_tokens=50, stop_ids={ids[3]}), submit_of(2, max_tokens=9)]])
    assert ahead.ids(key_of(1)) == ids[: end + 1]
    assert ahead.ends[key_of(1)].reason is FinishReason.STOP
    assert ahead.device.num_launches == in_step.device.num_launches == 9
    _, ahead = play_both([[submit_of(1, max_tokens=50, stop_ids={ids[3]})]])
    assert ahead.device.num_launches == end + 2


@pytest.mark.parametrize("limits", [{}, {"max_context": 7}, {"num_blocks": 2}])
def test_no_step_is_launched_behind_the_last_token_by_length(limits: dict[str, int]) -> None:
    in_step, ahead = play_both([[submit_of(1, range(3), max_tokens=5 if not limits else 50)]], **limits)
    assert ahead.ends[key_of(1)].reason is FinishReason.LENGTH
    assert ahead.device.num_launches == in_step.device.num_launches == len(ahead.ids(key_of(1)))


def test_a_stop_order_for_a_sequence_in_flight_takes_its_tokens_and_blocks() -> None:
    again = replace(submit_of(1, range(20, 30), max_tokens=4), key=replace_life(key_of(1)))
    turns: list[list[Order]] = [[submit_of(1, max_tokens=40), submit_of(2, max_tokens=30)], [], [], []]
    turns.append([Stop(key=key_of(1)), again, submit_of(3, range(30, 40), max_tokens=20)])
    _, ahead = play_both(turns, num_blocks=16)
    assert len(ahead.ids(key_of(1))) == 3  # the fourth was on the device
    assert len(ahead.ids(again.key)) == 4


def replace_life(key: JobKey) -> JobKey:
    return key._replace(life=1)


def test_all_stopped_with_a_step_in_flight() -> None:
    _, ahead = play_both([[submit_of(1, max_tokens=40)], [], [], [Stop(key=key_of(1))], [], [submit_of(2)]])
    assert len(ahead.ids(key_of(2))) == 8


def test_a_sequence_preempted_in_flight_gets_its_token_before_it_is_computed_again() -> None:
    orders = [submit_of(n, [n, n, n], max_tokens=20) for n in range(4)]
    waiting_with_placeholder: list[bool] = []
    commit = batcher_module.Batcher.commit

    def watch(self: batcher_module.Batcher, batch: Batch, *args: object) -> object:
        waiting_with_placeholder.extend(
            sequence.status.value == "waiting" and sequence.token_ids[-1] < 0 for sequence in batch.sequences
        )
        return commit(self, batch, *args)  # type: ignore[arg-type]

    with (
        mock.patch.object(batcher_module, "MAX_HEADROOM_TOKENS", 1),
        mock.patch.object(batcher_module.Batcher, "commit", watch),
    ):
        _, ahead = play_both([orders], num_blocks=10)
    assert ahead.engine.load.preemptions > 1
    assert any(waiting_with_placeholder)


def test_penalties_count_every_id_so_nothing_runs_ahead_of_them() -> None:
    counted = submit_of(1, max_tokens=5, penalty=0.5)
    seen: list[list[int]] = []

    def look(batch: Batch) -> None:
        seen.extend(list(s.token_ids) for s in batch.sequences if s.has_penalties)

    heard = play([[counted, submit_of(2, max_tokens=12)]], run_ahead=True, on_launch=look)
    assert len(seen) == 5
    assert all(min(token_ids) >= 0 for token_ids in seen)
    assert heard.device.num_ahead == 6  # once it has ended


def test_a_failing_batch_is_tried_without_the_step_in_flight_then_in_halves() -> None:
    poisoned = submit_of(9, [1, POISON, 2])
    turns: list[list[Order]] = [[submit_of(1), submit_of(2)], [], [], [poisoned, submit_of(3)]]
    in_step, ahead = play_both(turns)
    end = ahead.ends[key_of(9)]
    assert end.error is not None
    assert (end.error.code, end.error.message) == ("StepFailed", "RuntimeError: no such row")
    assert ahead.device.num_launches == in_step.device.num_launches + 1


def test_who_ends_while_a_batch_fails_is_not_stepped_again() -> None:
    ids = play([[submit_of(1, max_tokens=50)]], run_ahead=False).ids(key_of(1))
    end = ids.index(ids[3])
    turns: list[list[Order]] = [[submit_of(1, max_tokens=50, stop_ids={ids[3]})]]
    turns += [[]] * end
    turns.append([submit_of(9, [POISON])])  # launched with the step behind the stop id
    play_both(turns)
    play_both([*turns[:-1], [submit_of(2), submit_of(9, [POISON]), submit_of(3)]])


def test_only_what_can_be_retried_is_retried() -> None:
    def fail(batch: Batch) -> None:
        if len(batch.sequences) == 2:
            raise ValueError("the device is gone")

    with pytest.raises(ValueError, match="the device is gone"):
        play([[submit_of(1)], [], [submit_of(2)]], run_ahead=True, on_launch=fail)


def test_a_row_without_a_token_ends_its_sequence_and_the_step_behind_it() -> None:
    _, ahead = play_both([[submit_of(1, [NO_NUMBERS, 1, 2], max_tokens=30), submit_of(2, max_tokens=12)]])
    end = ahead.ends[key_of(1)]
    assert end.error is not None
    assert end.error.message == "the model's logits are not numbers"
    assert len(ahead.ids(key_of(1))) == 6
    assert len(ahead.ids(key_of(2))) == 12


def test_the_prefix_cache_knows_the_real_ids() -> None:
    ids = play([[submit_of(1, range(6), max_tokens=12)]], run_ahead=False).ids(key_of(1))
    turns: list[list[Order]] = [[submit_of(1, range(6), max_tokens=12)], *[[]] * 20]
    turns.append([submit_of(2, [*range(6), *ids[:11], 7, 8], max_tokens=3)])
    for heard in play_both(turns):
        assert heard.started == [Started(key_of(1), 0), Started(key_of(2), 16)]


def test_two_sequences_share_what_one_has_just_written() -> None:
    turns: list[list[Order]] = [[submit_of(1, range(9), max_tokens=30)], [], []]
    turns.append([submit_of(2, range(9), max_tokens=30)])
    for heard in play_both(turns):
        assert heard.started[1] == Started(key_of(2), 8)


def test_a_suspect_is_announced_when_nothing_else_is_in_flight() -> None:
    """The device itself asserts it, at every launch and at every announcement."""
    orders = [submit_of(1), submit_of(2, [4], alone=True), submit_of(3, [5], alone=True, max_tokens=12)]
    _, ahead = play_both([orders])
    assert ahead.device.announced[:4] == [key_of(2), None, key_of(3), None]
    assert ahead.device.announced[-1] is None
    _, ahead = play_both([[submit_of(1, alone=True)]])
    assert ahead.device.announced == [key_of(1), None]
    assert ahead.device.num_ahead == 7
    _, ahead = play_both([[submit_of(1, alone=True)], [], [], [Stop(key=key_of(1))]])
    assert ahead.device.announced == [key_of(1), None]


def test_who_comes_while_a_step_is_in_flight_is_in_the_next_one() -> None:
    launched: list[int] = []

    def meanwhile(device: PaperDevice, inbox: Inbox, _: Outbox) -> None:
        if device.num_launches == 3:
            inbox.put(submit_of(2, max_tokens=4))

    play(
        [[submit_of(1)]], run_ahead=True, meanwhile=meanwhile,
        on_launch=lambda batch: launched.append(len(batch.sequences)),
    )  # fmt: skip
    assert launched == [1, 1, 1, 2, 2, 2, 2, 1]


def test_what_a_step_brought_is_handed_out_before_anything_is_waited_for() -> None:
    handed_out: list[int] = []

    def meanwhile(device: PaperDevice, _: Inbox, outbox: Outbox) -> None:
        num_tokens = 0
        while (output := outbox.get(0.0)) is not None:
            num_tokens += len(output.tokens)
        handed_out.append(num_tokens)
        assert [told.read for told in device.told] == [True] * (device.num_launches - 1) + [False]

    play([[], [submit_of(1)]], run_ahead=True, meanwhile=meanwhile)
    assert handed_out == [0] + [1] * 7


def test_nothing_is_waited_for_where_nothing_is_in_flight() -> None:
    def meanwhile(*_: object) -> None:
        raise AssertionError

    play([[], [submit_of(1, penalty=0.5), submit_of(2)], []], run_ahead=True, meanwhile=meanwhile)
    play([[], [submit_of(1)], []], run_ahead=False, meanwhile=meanwhile)


def test_a_step_is_late_where_the_one_before_it_has_ended() -> None:
    def end_third(device: PaperDevice, *_: object) -> None:
        if device.num_launches == 3:
            device.ended.append(device.told[-1])

    assert play([[submit_of(1)]], run_ahead=True, meanwhile=end_third).pace.was_late == [
        number == 3 for number in range(8)
    ]


def test_an_engine_that_waits_for_orders_can_be_stopped() -> None:
    device = PaperDevice()
    batcher = Batcher(BlockManager(64, 4), max_num_seqs=4, max_num_batched_tokens=16, max_context=100)
    inbox = EagerInbox()
    runner = cast("ModelRunner", device)
    engine = Engine(
        batcher=batcher, runner=runner, inbox=inbox, outbox=Outbox(), announce=device.announce,
        on_turn=lambda: None, run_ahead=True, pace=PaperPace(lambda: 1e3), rehearsal=Rehearsal(runner, []),
    )  # fmt: skip
    inbox.put(submit_of(1))
    threading.Timer(0.05, engine.stop).start()
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert device.num_launches <= 2


submits = st.builds(
    submit_of,
    number=st.just(0),
    prompt=st.lists(
        st.sampled_from([0, 1, 2, 0, 1, 2, 0, 1, 2, POISON, NO_NUMBERS]), min_size=1, max_size=20
    ),
    max_tokens=st.integers(1, 24),
    stop_ids=st.sampled_from([(), (3,), (3, 4, 5)]),
    penalty=st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.5]),
    alone=st.sampled_from([False, False, False, True]),
)
"""Few different ids, so that prompts often share a beginning."""


@settings(deadline=None, max_examples=200)
@given(
    drawn=st.lists(st.lists(submits, max_size=4), min_size=1, max_size=6),
    stops=st.dictionaries(st.integers(0, 12).map(key_of), st.integers(0, 20), max_size=3),
    num_blocks=st.integers(4, 20),
    budget=st.integers(4, 24),
    headroom=st.sampled_from([1, 3, 256]),
)
def test_any_jobs_bring_the_same_ahead_as_in_step(
    drawn: list[list[Submit]], stops: dict[JobKey, int], num_blocks: int, budget: int, headroom: int
) -> None:
    numbers = itertools.count()
    turns: list[list[Order]] = [[] for _ in range(21)]
    for turn, orders in enumerate(drawn):
        turns[turn] += [replace(order, key=key_of(next(numbers))) for order in orders]
    for key, turn in stops.items():
        turns[turn].append(Stop(key=key))
    with mock.patch.object(batcher_module, "MAX_HEADROOM_TOKENS", headroom):
        play_both(turns, num_blocks=num_blocks, budget=budget)
