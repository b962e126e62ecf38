from __future__ import annotations

import pytest

from thinkstream_client.outcome import FinishReason
from thinkstream_client.records import JobRef
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.sampling import ResolvedSampling
from thinkstream_workers.sequence import Sequence


def sequence_of(published: tuple[int, ...], *, max_context: int = 100) -> Sequence:
    sampling = ResolvedSampling(max_tokens=4, stop_token_ids=frozenset({9}))
    key = JobKey(JobRef("tenant", "job"), 1)
    order = Submit(key=key, prompt_ids=(5, 6, 9), published_ids=published, sampling=sampling)
    return Sequence.of(order, 1, max_context)


def test_published_tokens_count_as_its_own_result() -> None:
    sequence = sequence_of((7, 8))
    assert list(sequence.token_ids) == [5, 6, 9, 7, 8]
    assert (sequence.num_tokens, sequence.num_prompt_tokens) == (5, 3)
    assert sequence.num_left_tokens == 2
    assert sequence_of((7, 8), max_context=6).num_left_tokens == 1


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
    sequence = sequence_of(published, max_context=max_context)
    assert sequence.end_reason(sequence.num_tokens) is reason
    sequence.token_ids.append(~0)  # of a token that is still on the device it says nothing
    assert sequence.end_reason(sequence.num_tokens - 1) is reason
