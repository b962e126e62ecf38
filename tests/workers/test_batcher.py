from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from thinkstream_client.outcome import FinishReason, JobFailure, TokenLogprobs
from thinkstream_client.records import JobRef
from thinkstream_workers import batcher as batcher_module
from thinkstream_workers.batch import Batch, SampledTokens
from thinkstream_workers.batcher import Batcher
from thinkstream_workers.block_manager import BlockManager
from thinkstream_workers.orders import JobKey, SequenceEnd, Started, StepOutput, Stop, Submit, TokenOut
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence

STOP_ID = 9


def key_of(number: int) -> JobKey:
    return JobKey(JobRef("tenant", f"job-{number}"), 1)


def submit_of(
    number: int,
    prompt: Iterable[int] = (1, 2, 3),
    *,
    published: Iterable[int] = (),
    max_tokens: int = 8,
    stop_ids: Iterable[int] = (),
    alone: bool = False,
) -> Submit:
    return Submit(
        key=key_of(number),
        prompt_ids=tuple(prompt),
        published_ids=tuple(published),
        sampling=ResolvedSampling(max_tokens=max_tokens, stop_token_ids=frozenset(stop_ids)),
        alone=alone,
    )


def batcher_of(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_num_batched_tokens: int = 16,
    max_context: int = 1000,
) -> Batcher:
    return Batcher(
        BlockManager(num_blocks, block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_context=max_context,
    )


def next_token(sequence: Sequence) -> int:
    """Stands for the model: depends on all tokens of the sequence and on nothing else."""
    token = 0
    for token_id in sequence.token_ids:
        token = (token * 31 + token_id + 7) % 1009
    return token % 10


def step(batcher: Batcher) -> tuple[Batch, StepOutput]:
    batch = batcher.next_batch()
    assert batch is not None
    return batch, done(batcher, batch, [next_token(s) for s in batch.sampled])


def done(batcher: Batcher, batch: Batch, token_ids: list[int]) -> StepOutput:
    batcher.advance(batch)
    return batcher.commit(batch, SampledTokens(token_ids))


@dataclass
class Heard:
    """What came out of a batcher, by job."""

    tokens: dict[JobKey, list[TokenOut]] = field(default_factory=dict[JobKey, list[TokenOut]])
    ends: list[SequenceEnd] = field(default_factory=list[SequenceEnd])

    def add(self, output: StepOutput) -> None:
        for token in output.tokens:
            self.tokens.setdefault(token.key, []).append(token)
        self.ends += output.ends

    def ids(self, number: int) -> list[int]:
        return [token.token_id for token in self.tokens[key_of(number)]]


def run_all(batcher: Batcher, orders: Iterable[Submit]) -> Heard:
    heard = Heard()
    heard.add(batcher.admit(orders))
    for _ in range(10_000):
        if not batcher.has_work:
            return heard
        heard.add(step(batcher)[1])
    raise AssertionError("the batcher does not end")


def test_prompt_then_one_token_a_step() -> None:
    batcher = batcher_of()
    batcher.admit([submit_of(1, range(5), max_tokens=3)])
    batch, output = step(batcher)
    assert batch.query_lens == (5,)
    assert [token.index for token in output.tokens] == [1]
    assert batch.started == (Started(key_of(1), 0),)
    batch, output = step(batcher)
    assert batch.query_lens == (1,)
    assert batch.started == ()
    _, output = step(batcher)
    assert [token.index for token in output.tokens] == [3]
    assert output.ends == [SequenceEnd(key=key_of(1), reason=FinishReason.LENGTH)]
    assert not batcher.has_work
    assert batcher.load.free_blocks == batcher.load.num_blocks
    assert (batcher.load.steps, batcher.load.tokens) == (3, 3)


def test_prompts_are_prefilled_in_chunks_beside_decodes() -> None:
    batcher = batcher_of(max_num_batched_tokens=8)
    batcher.admit([submit_of(1, range(3))])
    step(batcher)
    batcher.admit([submit_of(2, range(20)), submit_of(3, range(30, 34))])
    shapes: list[tuple[int, ...]] = []
    for _ in range(4):
        batch, output = step(batcher)
        assert output.tokens[0].key == key_of(1)  # a decode never waits for a prompt
        shapes.append(batch.query_lens)
    assert shapes == [(1, 7), (1, 7), (1, 6, 1), (1, 1, 3)]


def test_a_stop_id_ends_the_text_and_belongs_to_the_ids() -> None:
    ids = run_all(batcher_of(), [submit_of(1, max_tokens=50)]).ids(1)
    first = ids.index(ids[3])
    heard = run_all(batcher_of(), [submit_of(1, max_tokens=50, stop_ids={ids[3]})])
    assert heard.ids(1) == ids[: first + 1]
    assert heard.ends[0].reason is FinishReason.STOP


def test_the_context_ends_a_text() -> None:
    heard = run_all(batcher_of(max_context=7), [submit_of(1, range(3), max_tokens=50)])
    assert len(heard.ids(1)) == 4
    assert heard.ends[0].reason is FinishReason.LENGTH


def test_the_context_is_cut_at_what_the_pool_holds() -> None:
    batcher = batcher_of(num_blocks=3, block_size=4, max_context=1000)
    assert batcher.max_context == 12
    heard = run_all(batcher, [submit_of(1, range(3), max_tokens=50)])
    assert len(heard.ids(1)) == 9


def test_a_prompt_without_room_for_a_token_fails_and_blocks_nobody() -> None:
    batcher = batcher_of(num_blocks=3, block_size=4)
    heard = run_all(batcher, [submit_of(1, range(12)), submit_of(2, range(11)), submit_of(3, ())])
    ends = {end.key: end for end in heard.ends}
    error = ends[key_of(1)].error
    assert error is not None
    assert error.code == "PromptTooLong"
    assert error.data == {"num_tokens": 12, "limit": 11}
    assert len(heard.ids(2)) == 1
    empty = ends[key_of(3)].error
    assert empty is not None
    assert empty.code == "InvalidRequest"


def test_an_id_that_would_be_taken_for_a_placeholder_is_refused() -> None:
    batcher = batcher_of()
    ends = batcher.admit([submit_of(1, [1, -1]), submit_of(2, published=[-2])]).ends
    assert [end.error.code for end in ends if end.error] == ["InvalidRequest"] * 2
    assert not batcher.has_work


def test_a_resumed_sequence_goes_on_behind_what_is_published() -> None:
    whole = run_all(batcher_of(), [submit_of(1, max_tokens=8)]).ids(1)
    for k in range(8):
        heard = run_all(batcher_of(), [submit_of(1, published=whole[:k], max_tokens=8)])
        assert heard.ids(1) == whole[k:]
        assert [token.index for token in heard.tokens[key_of(1)]] == list(range(k + 1, 9))


def test_a_resumed_sequence_that_is_complete_ends_without_a_step() -> None:
    batcher = batcher_of(max_context=9)
    output = batcher.admit(
        [
            submit_of(1, published=[5, STOP_ID], stop_ids=[STOP_ID]),
            submit_of(2, published=[5, 5], max_tokens=2),
            submit_of(3, published=[5] * 6),
        ]
    )
    assert [end.reason for end in output.ends] == [
        FinishReason.STOP,
        FinishReason.LENGTH,
        FinishReason.LENGTH,
    ]
    assert not batcher.has_work


def test_admission_waits_for_blocks_in_the_order_of_arrival() -> None:
    batcher = batcher_of(num_blocks=8, block_size=4)
    batcher.admit([submit_of(n, range(n * 10, n * 10 + 8), max_tokens=8) for n in (1, 2)])
    batcher.admit([submit_of(3, range(100, 108), max_tokens=8), submit_of(4, [7], max_tokens=1)])
    step(batcher)
    assert (batcher.load.running, batcher.load.waiting) == (2, 2)  # 4 would fit but does not overtake 3
    batcher.admit([Stop(key=key_of(1))])
    batch, _ = step(batcher)
    assert [sequence.key for sequence in batch.sequences] == [key_of(2), key_of(3)]


def test_no_more_sequences_than_allowed() -> None:
    batcher = batcher_of(max_num_seqs=2)
    batcher.admit([submit_of(n) for n in range(5)])
    batch, _ = step(batcher)
    assert len(batch.sequences) == 2


def test_who_has_most_left_to_do_is_preempted_and_computed_again() -> None:
    orders = [submit_of(n, [n, n, n], max_tokens=m) for n, m in ((1, 300), (2, 310), (3, 290))]
    roomy = run_all(batcher_of(num_blocks=1000), orders)
    batcher = batcher_of(num_blocks=210)  # three times 259 tokens fit, three times 303 do not
    heard = Heard()
    heard.add(batcher.admit(orders))
    preempted: list[JobKey] = []
    started: list[JobKey] = []
    running: set[JobKey] = set()
    while batcher.has_work:
        batch, output = step(batcher)
        now = {sequence.key for sequence in batch.sequences}
        started += [one.key for one in batch.started]
        preempted += sorted(running - now)
        running = now - {end.key for end in output.ends}
        heard.add(output)
    assert preempted == [key_of(2)]
    assert all(heard.ids(n) == roomy.ids(n) for n in (1, 2, 3))
    assert started == [key_of(1), key_of(2), key_of(3)]


def test_the_prefix_cache_spares_a_shared_beginning() -> None:
    batcher = batcher_of(block_size=4)
    run_all(batcher, [submit_of(1, range(10))])
    batcher.admit([submit_of(2, [*range(8), 50, 51], max_tokens=1)])
    batch, _ = step(batcher)
    assert batch.query_lens == (2,)
    assert batch.started == (Started(key_of(2), 8),)


def test_a_sequence_without_a_token_fails_and_leaves_nothing_to_share() -> None:
    batcher = batcher_of(block_size=4)
    batcher.admit([submit_of(1, range(10)), submit_of(2, range(20, 25))])
    batch = batcher.next_batch()
    assert batch is not None
    output = done(batcher, batch, [-1, 5])
    assert [(end.key, end.error.code) for end in output.ends if end.error] == [(key_of(1), "StepFailed")]
    assert [token.key for token in output.tokens] == [key_of(2)]
    batcher.admit([submit_of(3, range(10)), submit_of(4, range(20, 30))])
    batch, _ = step(batcher)
    assert batch.started == (Started(key_of(3), 0), Started(key_of(4), 4))


def test_a_suspect_is_stepped_alone_between_the_steps_of_others() -> None:
    batcher = batcher_of()
    batcher.admit([submit_of(1), submit_of(2), submit_of(3, alone=True), submit_of(4, alone=True)])
    seen = [[int(s.key.ref.job_id[-1]) for s in step(batcher)[0].sequences] for _ in range(6)]
    assert seen == [[1, 2], [3], [1, 2], [4], [1, 2], [3]]
    batcher.admit([Stop(key=key_of(1)), Stop(key=key_of(2))])
    seen = [[int(s.key.ref.job_id[-1]) for s in step(batcher)[0].sequences] for _ in range(3)]
    assert seen == [[4], [3], [4]]


def test_the_batch_names_its_suspect() -> None:
    batcher = batcher_of()
    batcher.admit([submit_of(1, alone=True)])
    batch = batcher.next_batch()
    assert batch is not None
    assert batch.alone == key_of(1)


def test_stop_forgets_silently_and_only_what_is_there() -> None:
    batcher = batcher_of(max_num_seqs=1)
    batcher.admit([submit_of(1), submit_of(2)])
    step(batcher)
    output = batcher.admit([Stop(key=key_of(1)), Stop(key=key_of(2)), Stop(key=key_of(3))])
    assert output == StepOutput()
    assert not batcher.has_work
    assert batcher.load.free_blocks == batcher.load.num_blocks


def test_a_second_order_for_the_same_ownership_changes_nothing() -> None:
    heard = run_all(batcher_of(), [submit_of(1), submit_of(1)])
    assert len(heard.ids(1)) == 8
    assert len(heard.ends) == 1


def test_fail_ends_all_of_a_batch() -> None:
    batcher = batcher_of()
    batcher.admit([submit_of(1), submit_of(2)])
    batch = batcher.next_batch()
    assert batch is not None
    left, right = batch.halves()
    failure = JobFailure(code="StepFailed", message="no")
    output = batcher.fail(left, failure)
    assert output.ends == [SequenceEnd(key=key_of(1), reason=FinishReason.FAILED, error=failure)]
    assert done(batcher, right, [4]).tokens == [TokenOut(key_of(2), 1, 4)]


def test_logprobs_stay_with_their_tokens() -> None:
    batcher = batcher_of()
    batcher.admit([submit_of(1), submit_of(2)])
    batch = batcher.next_batch()
    assert batch is not None
    batcher.advance(batch)
    output = batcher.commit(batch, SampledTokens([4, 5], [None, TokenLogprobs(-0.5)]))
    assert [token.logprobs for token in output.tokens] == [None, TokenLogprobs(-0.5)]


submits = st.builds(
    submit_of,
    number=st.just(0),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20),
    max_tokens=st.integers(1, 24),
    stop_ids=st.sampled_from([(), (3,)]),
    alone=st.sampled_from([False, False, False, True]),
)
"""Few different ids, so that prompts often share a beginning."""

Steps = list[tuple[tuple[JobKey, ...], tuple[int, ...]]]


def play(
    batcher: Batcher, arrivals: list[list[Submit]], stops: dict[JobKey, int], budget: int
) -> tuple[Heard, Steps]:
    """Steps until nothing is left, orders coming in meanwhile, and looks at every batch."""
    heard, steps, turn = Heard(), Steps(), 0
    while batcher.has_work or turn < len(arrivals):
        assert turn < 5_000
        heard.add(batcher.admit(arrivals[turn] if turn < len(arrivals) else ()))
        heard.add(batcher.admit(Stop(key=key) for key, at in stops.items() if at == turn))
        turn += 1
        batch = batcher.next_batch()
        if batch is None:
            continue
        assert sum(batch.query_lens) <= budget
        assert min(batch.query_lens) >= 1
        assert len(batch.sequences) == 1 or not any(s.alone for s in batch.sequences)
        for sequence, query_len in zip(batch.sequences, batch.query_lens, strict=True):
            assert sequence.num_computed_tokens + query_len <= len(sequence.block_table) * 4
        steps.append((tuple(s.key for s in batch.sequences), batch.query_lens))
        heard.add(done(batcher, batch, [next_token(s) for s in batch.sampled]))
    return heard, steps


@settings(deadline=None, max_examples=150)
@given(
    drawn=st.lists(st.lists(submits, max_size=4), min_size=1, max_size=6),
    stops=st.dictionaries(st.integers(0, 12).map(key_of), st.integers(0, 20), max_size=3),
    num_blocks=st.integers(4, 20),
    budget=st.integers(4, 24),
    headroom=st.sampled_from([1, 3, 256]),
)
def test_any_order_of_events(
    drawn: list[list[Submit]], stops: dict[JobKey, int], num_blocks: int, budget: int, headroom: int
) -> None:
    """Every sequence ends once with the tokens it gets alone, no block is lost, no step is too large."""
    numbers = itertools.count()
    arrivals = [[replace(order, key=key_of(next(numbers))) for order in orders] for orders in drawn]

    def batcher() -> Batcher:
        return batcher_of(num_blocks=num_blocks, max_num_seqs=4, max_num_batched_tokens=budget)

    with mock.patch.object(batcher_module, "MAX_HEADROOM_TOKENS", headroom):
        used = batcher()
        heard, steps = play(used, arrivals, stops, budget)
        assert (used.load.running, used.load.waiting, used.load.free_blocks) == (0, 0, num_blocks)
        for order in (order for orders in arrivals for order in orders):
            if order.key not in stops:
                alone = run_all(batcher(), [replace(order, alone=False)])
                assert heard.tokens.get(order.key, []) == alone.tokens.get(order.key, [])
                assert [end.key for end in heard.ends].count(order.key) == 1
        assert play(batcher(), arrivals, stops, budget) == (heard, steps)


def test_orders_like_those_above_do_preempt() -> None:
    orders = [submit_of(n, [n, n, n], max_tokens=20) for n in range(4)]
    batcher = batcher_of(num_blocks=10)
    with mock.patch.object(batcher_module, "MAX_HEADROOM_TOKENS", 1):
        play(batcher, [orders], {}, 16)
    assert batcher.load.preemptions > 1
