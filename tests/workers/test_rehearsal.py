"""Graphs made while there is no work; that they compute what a step does is tested in tests/kernels."""

from __future__ import annotations

import logging
from typing import cast

import pytest
from tests.support.paper_device import play

from thinkstream_client.records import JobRef
from thinkstream_workers.batch import Batch
from thinkstream_workers.buckets import MAX_PROMPTS, Bucket, most_tokens, usual_buckets
from thinkstream_workers.orders import JobKey, Order, Submit
from thinkstream_workers.rehearsal import Rehearsal, blank_batch
from thinkstream_workers.runner import ModelRunner
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.step_graphs import MAX_GRAPHS


def decodes(num_rows: int, context: int = 256) -> Bucket:
    return Bucket(num_rows, context, 0, 0, "filtered")


class HandRunner:
    """Has some graphs already, makes one in two steps, and fails as told."""

    def __init__(self, *made: Bucket, error: Exception | None = None, fatal: bool = False) -> None:
        self.steps: list[Bucket] = []
        self._made, self._error, self._fatal = made, error, fatal

    def rehearse(self, batch: Batch, bucket: Bucket) -> bool:
        if self._error is not None:
            raise self._error
        if bucket in self._made or self.steps.count(bucket) == 2:
            return False
        self.steps.append(bucket)
        return True

    def is_fatal(self, error: Exception) -> bool:
        return self._fatal

    def rehearsal(self, *buckets: Bucket) -> Rehearsal:
        return Rehearsal(cast("ModelRunner", self), buckets)


def test_does_one_step_at_a_time_and_passes_over_what_has_its_graph() -> None:
    four, two, one = map(decodes, (4, 2, 1))
    runner = HandRunner(two)
    rehearsal = runner.rehearsal(four, two, one)
    for num_steps in (1, 2, 3, 4):
        assert not rehearsal.is_over
        rehearsal.step()
        assert len(runner.steps) == num_steps
    rehearsal.step()
    assert rehearsal.is_over
    rehearsal.step()
    assert runner.steps == [four, four, one, one]


def test_what_fails_ends_the_rehearsal_and_not_the_replica(caplog: pytest.LogCaptureFixture) -> None:
    rehearsal = HandRunner(error=RuntimeError("no such kernel")).rehearsal(decodes(1), decodes(2))
    with caplog.at_level(logging.WARNING):
        rehearsal.step()
    assert rehearsal.is_over
    assert "no more graphs are made ahead: RuntimeError: no such kernel" in caplog.text


def test_a_failed_device_is_not_hidden() -> None:
    rehearsal = HandRunner(error=RuntimeError("illegal address"), fatal=True).rehearsal(decodes(1))
    with pytest.raises(RuntimeError, match="illegal address"):
        rehearsal.step()


def test_no_graph_is_made_only_to_be_forgotten() -> None:
    runner = HandRunner()
    rehearsal = runner.rehearsal(*map(decodes, range(1, MAX_GRAPHS + 9)))
    while not rehearsal.is_over:
        rehearsal.step()
    assert len({*runner.steps}) == MAX_GRAPHS


@pytest.mark.parametrize(
    ("bucket", "query_lens"),
    [
        (decodes(4), (1,)),
        (Bucket(0, 0, 64, 512, "filtered"), (2,)),
        (Bucket(2, 256, 64, 512, "filtered"), (1, 2)),
    ],
)
def test_a_blank_step_has_one_of_each_kind(bucket: Bucket, query_lens: tuple[int, ...]) -> None:
    batch = blank_batch(bucket)
    assert batch.query_lens == batch.context_lens == query_lens
    assert batch.is_plain
    bucket_of_batch = Bucket.of(batch.query_lens, batch.context_lens, "filtered", longest=512)
    assert bucket_of_batch is not None
    assert (bucket_of_batch.num_decodes > 0, bucket_of_batch.num_prompts) == (
        bucket.num_decodes > 0,
        bucket.num_prompts,
    )


def test_the_engine_rehearses_between_jobs_and_never_beside_one() -> None:
    def order(number: int) -> Order:
        key = JobKey(JobRef("tenant", f"job-{number}"), 1)
        return Submit(key=key, prompt_ids=(1, 2, 3), sampling=ResolvedSampling(max_tokens=5))

    turns: list[list[Order]] = [[], [], [order(1)], *[[]] * 8, [order(2)], *[[]] * 12]
    buckets = [decodes(number) for number in range(1, 10)]
    for run_ahead in (False, True):
        heard = play(turns, run_ahead=run_ahead, buckets=buckets)
        assert [len(tokens) for tokens in heard.tokens.values()] == [5, 5]
        assert [bucket for _, bucket in heard.device.rehearsed] == buckets
        assert {launches for launches, _ in heard.device.rehearsed} == {0, 5, 10}
        assert heard.engine.is_rehearsed


@pytest.mark.parametrize("num_seqs", [1, 8, 32, 100, 256])
def test_what_is_usual_begins_with_what_takes_most_memory(num_seqs: int) -> None:
    buckets = usual_buckets(num_seqs, 8_192, 32_768)
    first = buckets[:2]
    assert max(b.num_tokens for b in buckets) == max(b.num_tokens for b in first)
    assert max(b.num_sequences for b in buckets) == max(b.num_sequences for b in first)


def test_what_is_usual_fits_among_the_graphs() -> None:
    buckets = usual_buckets(256, 8_192, 32_768)
    assert len(set(buckets)) == len(buckets) <= MAX_GRAPHS
    assert {Bucket(0, 0, num_tokens, 32_768, "filtered") for num_tokens in (64, 512, 1_024)} < {*buckets}
    assert {decodes(rows, context) for rows in (1, 2, 64, 256) for context in (256, 2_048)} < {*buckets}
    assert {Bucket(rows, 4_096, 128, 32_768, "filtered") for rows in (8, 16, 32)} < {*buckets}


@pytest.mark.parametrize("longest", [2, 100, 300, 4_096])
@pytest.mark.parametrize("num_seqs", [1, 3, 24])
def test_what_is_usual_is_what_steps_ask_for(num_seqs: int, longest: int) -> None:
    buckets = usual_buckets(num_seqs, 8_192, longest)
    assert {(bucket.num_decodes > 0, bucket.num_prompts > 0) for bucket in buckets} == {
        (True, False), (False, True), (True, True),
    }  # fmt: skip
    for bucket in buckets:
        query_lens = [1] * bucket.num_decodes + [bucket.num_prompt_tokens] * bool(bucket.num_prompts)
        context_lens = [bucket.decode_context] * bucket.num_decodes + [longest] * bool(bucket.num_prompts)
        assert bucket == Bucket.of(query_lens, context_lens, "filtered", longest=longest)


@pytest.mark.parametrize("longest", [2, 100, 4_096])
@pytest.mark.parametrize(("num_seqs", "step_tokens"), [(1, 64), (32, 256), (256, 256), (256, 8_192)])
def test_what_no_step_can_be_is_not_usual(num_seqs: int, step_tokens: int, longest: int) -> None:
    buckets = usual_buckets(num_seqs, step_tokens, longest)
    assert max(bucket.num_tokens for bucket in buckets) <= most_tokens(num_seqs, step_tokens)
    prompts = {bucket.num_prompt_tokens for bucket in buckets}
    assert sorted(prompts)[-2] < min(step_tokens, MAX_PROMPTS * longest)
