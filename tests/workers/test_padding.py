from __future__ import annotations

import numpy as np

from thinkstream_workers.buckets import MAX_PROMPTS, Bucket
from thinkstream_workers.padding import padded_arrays
from thinkstream_workers.step_arrays import Array


def test_what_pads_a_decode_is_its_last_token_and_writes_nothing() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 7]),
        "positions_T": np.array([0, 19, 29]),
        "slot_mapping_T": np.array([48, 49, 50]),
        "cu_seqlens_q_B1": np.array([0, 1, 2, 3], dtype=np.int32),
        "context_lens_B": np.array([1, 20, 30], dtype=np.int32),
        "block_tables_BM": np.array([[3, 0], [4, 5], [8, 9]], dtype=np.int32),
        "output_rows_S": np.array([0, 1, 2]),
        "temperature_B": np.array([0.0, 0.5, 1.0], dtype=np.float32),
    }
    padded = padded_arrays(arrays, Bucket(5, 256, 0, 0, "filtered"), block_size=64)
    assert listed(padded) == {
        "input_ids_T": [5, 6, 7, 7, 7],
        "positions_T": [0, 19, 29, 29, 29],
        "slot_mapping_T": [48, 49, 50, -1, -1],
        "cu_seqlens_q_B1": [0, 1, 2, 3, 4, 5],
        "context_lens_B": [1, 20, 30, 30, 30],
        "block_tables_BM": [[3, 0, 0, 0], [4, 5, 0, 0], *[[8, 9, 0, 0]] * 3],
        "output_rows_S": [0, 1, 2, 2, 2],
        "temperature_B": [0.0, 0.5, 1.0, 1.0, 1.0],
    }
    assert dtypes(padded) == dtypes(arrays)
    assert arrays["slot_mapping_T"].tolist() == [48, 49, 50]


def test_what_pads_a_prompt_belongs_to_no_sequence_and_writes_nothing() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 7]),
        "positions_T": np.array([0, 1, 2]),
        "slot_mapping_T": np.array([48, 49, 50]),
        "cu_seqlens_q_B1": np.array([0, 3], dtype=np.int32),
        "context_lens_B": np.array([3], dtype=np.int32),
        "block_tables_BM": np.array([[3]], dtype=np.int32),
        "output_rows_S": np.array([2]),
    }
    padded = padded_arrays(arrays, Bucket(0, 0, 6, 128, "filtered"), block_size=64)
    assert listed(padded) == {
        "input_ids_T": [5, 6, 7, 7, 7, 7],
        "positions_T": [0, 1, 2, 2, 2, 2],
        "slot_mapping_T": [48, 49, 50, -1, -1, -1],
        "cu_seqlens_q_B1": [0, *[3] * MAX_PROMPTS],
        "context_lens_B": [3] * MAX_PROMPTS,
        "block_tables_BM": [[3, 0]] * MAX_PROMPTS,
        "output_rows_S": [2] * MAX_PROMPTS,
    }
    assert dtypes(padded) == dtypes(arrays)


def test_decodes_and_prompts_are_padded_each_behind_their_own() -> None:
    arrays = {
        "input_ids_T": np.array([5, 6, 10, 11, 12, 20, 21]),
        "positions_T": np.array([8, 9, 0, 1, 2, 4, 5]),
        "slot_mapping_T": np.array([80, 90, 100, 101, 102, 204, 205]),
        "cu_seqlens_q_B1": np.array([0, 1, 2, 5, 7], dtype=np.int32),
        "context_lens_B": np.array([9, 10, 3, 6], dtype=np.int32),
        "block_tables_BM": np.array([[1], [2], [3], [4]], dtype=np.int32),
        "output_rows_S": np.array([0, 1, 4, 6]),
        "temperature_B": np.array([0.1, 0.2, 0.3, 0.4]),
    }
    padded = padded_arrays(arrays, Bucket(4, 64, 8, 64, "filtered"), block_size=64)
    pads = MAX_PROMPTS - 2
    assert listed(padded) == {
        "input_ids_T": [5, 6, 6, 6, 10, 11, 12, 20, 21, 21, 21, 21],
        "positions_T": [8, 9, 9, 9, 0, 1, 2, 4, 5, 5, 5, 5],
        "slot_mapping_T": [80, 90, -1, -1, 100, 101, 102, 204, 205, -1, -1, -1],
        "cu_seqlens_q_B1": [0, 1, 2, 3, 4, 7, 9, *[9] * pads],
        "context_lens_B": [9, 10, 10, 10, 3, 6, *[6] * pads],
        "block_tables_BM": [[1], [2], [2], [2], [3], [4], *[[4]] * pads],
        "output_rows_S": [0, 1, 6, 8, *[8] * (pads + 2)],
        "temperature_B": [0.1, 0.2, 0.3, 0.4, *[0.4] * (pads + 2)],
    }


def listed(arrays: dict[str, Array]) -> dict[str, object]:
    return {name: array.tolist() for name, array in arrays.items()}


def dtypes(arrays: dict[str, Array]) -> dict[str, object]:
    return {name: array.dtype for name, array in arrays.items()}
