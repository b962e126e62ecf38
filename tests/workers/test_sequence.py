from __future__ import annotations

import pytest

from thinkstream_client.records import FinishReason, JobRef
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence


def sequence_of(published: tuple[int, ...], *, max_tokens: int = 4) -> Sequence:
    sampling = ResolvedSampling(max_tokens=max_tokens, stop_token_ids=frozenset({9}))
    key = JobKey(JobRef("tenant", "job"), 1)
    order = Submit(key=key, prompt_ids=(5, 6, 9), published_ids=published, sampling=sampling)
    return Sequence.of(order, 1)


def test_published_tokens_count_as_its_own_result() -> None:
    sequence = sequence_of((7, 8))
    assert list(sequence.token_ids) == [5, 6, 9, 7, 8]
    assert (sequence.num_tokens, sequence.num_prompt_tokens, sequence.num_output_tokens) == (5, 3, 2)
    assert sequence.num_left_tokens == 2


@pytest.mark.parametrize(
    ("published", "max_context", "reason"),
    [
        ((), 100, None),  # a stop id at the end of the prompt is part of the question
        ((7,), 100, None),
        ((7, 9), 100, FinishReason.STOP),
        ((9, 7), 100, None),  # only the last token ends a text
        ((7, 7, 7, 7), 100, FinishReason.LENGTH),
        ((7, 7, 7, 9), 100, FinishReason.STOP),
        ((7, 7), 5, FinishReason.LENGTH),
        ((7, 9), 5, FinishReason.STOP),
    ],
)
def test_end_reason(published: tuple[int, ...], max_context: int, reason: FinishReason | None) -> None:
    assert sequence_of(published).end_reason(max_context) is reason
