from __future__ import annotations

import numpy as np
import pytest

from thinkstream_workers.buckets import Bucket, bucket_rows, padded_arrays, prompt_buckets


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
    bucket = Bucket.of(num_rows, num_rows, max_context, "filtered", longest=5_000)
    assert bucket == (bucket_rows(num_rows), bucket_rows(num_rows), context, "filtered")
    assert bucket.is_decode
    assert bucket.lengths == ((1,) * bucket.num_sequences, (context,) * bucket.num_sequences, False)


def test_a_prompt_has_one_sequence_and_one_bucket_for_all_contexts() -> None:
    buckets = {Bucket.of(70, 1, context, "none", longest=5_000) for context in (70, 300, 5_000)}
    assert buckets == {(128, 1, 5_000, "none")}
    assert buckets.pop().lengths == ((128,), (5_000,), True)
    assert Bucket.of(512, 1, 512, "none", longest=5_000).num_tokens in prompt_buckets()


def test_what_pads_a_decode_is_its_last_token_and_writes_nothing() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 7]),
        "slot_mapping_T": np.array([48, 49, 50]),
        "cu_seqlens_q_B1": np.array([0, 1, 2, 3], dtype=np.int32),
        "context_lens_B": np.array([1, 20, 30], dtype=np.int32),
        "block_tables_BM": np.array([[3, 0], [4, 5], [8, 9]], dtype=np.int32),
        "output_rows_S": np.array([0, 1, 2]),
        "temperature_B": np.array([0.0, 0.5, 1.0], dtype=np.float32),
    }
    padded = padded_arrays(arrays, Bucket(5, 5, 256, "filtered"), block_size=64)
    assert padded["input_ids_T"].tolist() == [5, 6, 7, 7, 7]
    assert padded["slot_mapping_T"].tolist() == [48, 49, 50, -1, -1]
    assert padded["cu_seqlens_q_B1"].tolist() == [0, 1, 2, 3, 4, 5]
    assert padded["context_lens_B"].tolist() == [1, 20, 30, 30, 30]
    assert padded["output_rows_S"].tolist() == [0, 1, 2, 2, 2]
    assert padded["temperature_B"].tolist() == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert padded["block_tables_BM"].tolist() == [[3, 0, 0, 0], [4, 5, 0, 0], *[[8, 9, 0, 0]] * 3]
    assert {name: array.dtype for name, array in padded.items()} == {
        name: array.dtype for name, array in arrays.items()
    }
    assert arrays["slot_mapping_T"].tolist() == [48, 49, 50]


def test_what_pads_a_prompt_belongs_to_no_sequence_and_writes_nothing() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 7]),
        "slot_mapping_T": np.array([48, 49, 50]),
        "cu_seqlens_q_B1": np.array([0, 3], dtype=np.int32),
        "context_lens_B": np.array([3], dtype=np.int32),
        "block_tables_BM": np.array([[3]], dtype=np.int32),
        "output_rows_S": np.array([2]),
    }
    padded = padded_arrays(arrays, Bucket(6, 1, 256, "filtered"), block_size=64)
    assert padded["input_ids_T"].tolist() == [5, 6, 7, 7, 7, 7]
    assert padded["slot_mapping_T"].tolist() == [48, 49, 50, -1, -1, -1]
    assert padded["cu_seqlens_q_B1"].tolist() == [0, 3]
    assert padded["output_rows_S"].tolist() == [2]
