"""The buckets of captured steps. What a graph computes is tested in tests/kernels, on a GPU and without."""

from __future__ import annotations

import numpy as np
import pytest

from thinkstream_workers.step_graphs import Bucket, bucket_rows, padded_arrays, prompt_buckets


@pytest.mark.parametrize(
    ("num_rows", "rows"),
    [(1, 1), (7, 7), (9, 10), (16, 16), (17, 20), (33, 40), (65, 80), (129, 160), (257, 288)],
)
def test_a_decode_is_padded_by_a_quarter_at_most(num_rows: int, rows: int) -> None:
    assert bucket_rows(num_rows) == rows
    assert rows <= num_rows * 1.25


def test_a_decode_has_a_token_per_sequence_and_a_prompt_one_sequence() -> None:
    assert Bucket.of(9, 9, 300, is_filtered=True) == Bucket(10, 10, 512, True)
    assert Bucket.of(70, 1, 70, is_filtered=False) == Bucket(128, 1, 256, False)
    assert Bucket.of(1, 1, 257, is_filtered=False) == Bucket(1, 1, 512, False)
    assert Bucket.of(512, 1, 512, is_filtered=False).num_tokens in prompt_buckets()


def test_padding_repeats_the_last_token_of_a_decode() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 7]),
        "context_lens_B": np.array([1, 20, 30], dtype=np.int32),
        "block_tables_BM": np.array([[3, 0], [4, 5], [8, 9]], dtype=np.int32),
        "output_rows_S": np.array([0, 1, 2]),
    }
    padded = padded_arrays(arrays, Bucket(5, 5, 256, False), block_size=64)
    assert padded["input_ids_T"].tolist() == [5, 6, 7, 7, 7]
    assert padded["context_lens_B"].tolist() == [1, 20, 30, 30, 30]
    assert padded["output_rows_S"].tolist() == [0, 1, 2, 2, 2]
    assert padded["block_tables_BM"].tolist() == [[3, 0, 0, 0], [4, 5, 0, 0], *[[8, 9, 0, 0]] * 3]
    assert padded["block_tables_BM"].dtype == np.int32


def test_padding_leaves_a_prompt_its_length() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 7]),
        "slot_mapping_T": np.array([48, 49, 50]),
        "cu_seqlens_q_B1": np.array([0, 3], dtype=np.int32),
        "context_lens_B": np.array([3], dtype=np.int32),
        "block_tables_BM": np.array([[3]], dtype=np.int32),
        "output_rows_S": np.array([2]),
    }
    padded = padded_arrays(arrays, Bucket(6, 1, 256, False), block_size=64)
    assert padded["input_ids_T"].tolist() == [5, 6, 7, 7, 7, 7]
    assert padded["slot_mapping_T"].tolist() == [48, 49, 50, -1, -1, -1]
    assert padded["cu_seqlens_q_B1"].tolist() == [0, 3]
    assert padded["output_rows_S"].tolist() == [2]
