from __future__ import annotations

import pytest

from thinkstream_workers.buckets import (
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    PROMPT_BUCKETS,
    Bucket,
    bucket_rows,
    most_sequences,
    most_tokens,
    rows_beside_prompts,
    sequence_counts,
)


@pytest.mark.parametrize(
    ("num_rows", "rows"),
    [(1, 1), (7, 7), (9, 10), (16, 16), (17, 20), (33, 40), (65, 80), (129, 160), (257, 288)],
)
def test_a_decode_is_padded_by_a_quarter_at_most(num_rows: int, rows: int) -> None:
    assert bucket_rows(num_rows) == rows
    assert rows <= num_rows * 1.25


@pytest.mark.parametrize(
    ("num_rows", "max_context", "context"),
    [(1, 256, 256), (1, 257, 512), (9, 1_025, 2_048), (1, 4_097, 5_000)],
)
def test_a_context_is_at_most_doubled(num_rows: int, max_context: int, context: int) -> None:
    bucket = Bucket.of((1,) * num_rows, (max_context,) * num_rows, "filtered", longest=5_000)
    assert bucket is not None
    assert bucket == (bucket_rows(num_rows), context, 0, 0, "filtered")
    rows = bucket.num_decodes
    assert (bucket.num_tokens, bucket.num_sequences) == (rows, rows)
    assert bucket.lengths == ((1,) * rows, (context,) * rows, False)


def test_prompts_have_one_bucket_for_all_contexts_and_all_numbers_of_them() -> None:
    buckets = {
        Bucket.of(query_lens, [context] * len(query_lens), "none", longest=5_000)
        for query_lens in ([70], [66, 4], [10, *[8] * 7])
        for context in (70, 300, 5_000)
    }
    assert buckets == {(0, 0, 128, 5_000, "none")}
    bucket = Bucket.of([70], [70], "none", longest=5_000)
    assert bucket is not None
    assert (bucket.num_tokens, bucket.num_sequences) == (128, MAX_PROMPTS)
    assert bucket.lengths == ((128,) * MAX_PROMPTS, (5_000,) * MAX_PROMPTS, True)


@pytest.mark.parametrize(
    ("num_rows", "rows", "max_context", "context"),
    [(1, 8, 20, 4_096), (17, 32, 4_096, 4_096), (65, 128, 4_097, 5_000), (200, 256, 5_000, 5_000)],
)
def test_beside_prompts_decodes_have_fewer_buckets(
    num_rows: int, rows: int, max_context: int, context: int
) -> None:
    query_lens = (*[1] * num_rows, 500, 12)
    bucket = Bucket.of(query_lens, (*[max_context] * num_rows, 500, 12), "filtered", longest=5_000)
    assert bucket is not None
    assert bucket == (rows, context, 512, 5_000, "filtered")
    assert (bucket.num_tokens, bucket.num_sequences) == (rows + 512, rows + MAX_PROMPTS)
    assert bucket.lengths.query_lens == (1,) * rows + (512,) * MAX_PROMPTS
    assert bucket.lengths.context_lens == (context,) * rows + (5_000,) * MAX_PROMPTS


@pytest.mark.parametrize(
    "query_lens", [(MAX_PROMPT_TOKENS + 1,), (1, 1, 2_000, 49), (2,) * (MAX_PROMPTS + 1)]
)
def test_more_prompts_than_gain_by_a_graph_have_no_bucket(query_lens: tuple[int, ...]) -> None:
    assert Bucket.of(query_lens, query_lens, "none", longest=5_000) is None


@pytest.mark.parametrize(("longest", "wasted"), [(256, 64), (512, 128), (MAX_PROMPT_TOKENS, 256)])
def test_prompts_are_padded_by_less_than_a_step_of_their_buckets(longest: int, wasted: int) -> None:
    for num_tokens in range(2, longest + 1):
        bucket = Bucket.of((num_tokens,), (num_tokens,), "none", longest=5_000)
        assert bucket is not None
        assert bucket.num_prompt_tokens in PROMPT_BUCKETS
        assert num_tokens <= bucket.num_prompt_tokens < num_tokens + wasted


def test_prompts_of_all_lengths_beside_changing_decodes_find_room_among_the_graphs() -> None:
    def bucket(num_decodes: int, context: int, num_tokens: int) -> Bucket | None:
        contexts = (*[context] * num_decodes, num_tokens)
        return Bucket.of((*[1] * num_decodes, num_tokens), contexts, "filtered", longest=32_768)

    buckets = {
        bucket(num_decodes, context, num_tokens)
        for num_decodes in range(1, 129)
        for context in (20, 600, 1_500, 4_000)
        for num_tokens in range(16, 2_001, 16)
    }
    assert None not in buckets
    assert len(buckets) <= 60


@pytest.mark.parametrize("slots", [1, 5, 17, 64, 100, 200, 256, 300])
def test_no_bucket_is_wider_than_the_widest(slots: int) -> None:
    widest = max(max(bucket_rows(n), rows_beside_prompts(n) + MAX_PROMPTS) for n in range(1, slots + 1))
    assert most_sequences(slots) == widest


@pytest.mark.parametrize(("slots", "step_tokens"), [(1, 64), (17, 100), (256, 1_024), (256, 4_096)])
def test_every_bucket_has_a_number_of_sequences_and_tokens_that_is_told(slots: int, step_tokens: int) -> None:
    counts, longest = sequence_counts(slots), most_tokens(slots, step_tokens)
    assert counts == sorted(set(counts))
    for num_decodes in range(slots + 1):
        for num_prompt_tokens in (0, 2, step_tokens - num_decodes):
            query_lens = (1,) * num_decodes + (num_prompt_tokens,) * (num_prompt_tokens > 1)
            bucket = Bucket.of(query_lens, query_lens, "none", longest=8_192)
            if query_lens and bucket is not None:
                assert bucket.num_sequences in counts
                assert bucket.num_tokens <= longest
