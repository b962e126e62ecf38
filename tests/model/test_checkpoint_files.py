from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from thinkstream_model.checkpoint_files import find_tensors, read_bytes
from thinkstream_model.errors import WeightsError


def _shard(number: int, total: int) -> str:
    return f"model-{number:05d}-of-{total:05d}.safetensors"


def _save_shards(folder: Path, *, with_index: bool) -> dict[str, torch.Tensor]:
    tensors = {f"t{n}": torch.full((n + 1, 2), float(n)) for n in range(6)}
    for number in (1, 2, 3):
        names = [name for place, name in enumerate(tensors) if place % 3 == number - 1]
        save_file({name: tensors[name] for name in names}, folder / _shard(number, 3))
    if with_index:
        weight_map = {name: _shard(place % 3 + 1, 3) for place, name in enumerate(tensors)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def _beginning(value: object) -> str:
    return str(value)[:60]


def _refused(folder: Path) -> WeightsError:
    with pytest.raises(WeightsError) as refused:
        find_tensors(folder)
    assert "\n" not in str(refused.value)
    return refused.value


@pytest.mark.parametrize("with_index", [True, False])
def test_finds_the_tensors_of_all_shards(tmp_path: Path, *, with_index: bool) -> None:
    tensors = _save_shards(tmp_path, with_index=with_index)
    found = find_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, stored in found.items():
        assert read_bytes(stored, 0, stored.num_bytes) == tensors[name].numpy().tobytes()


def test_reads_some_bytes_of_a_tensor(tmp_path: Path) -> None:
    save_file({"t": torch.arange(8.0)}, tmp_path / "model.safetensors")
    stored = find_tensors(tmp_path)["t"]
    assert read_bytes(stored, 8, 8) == torch.arange(8.0).numpy().tobytes()[8:16]


def test_a_folder_without_weights(tmp_path: Path) -> None:
    error = _refused(tmp_path)
    assert (error.file, error.tensor) == (str(tmp_path), "")


@pytest.mark.parametrize("with_index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, *, with_index: bool) -> None:
    _save_shards(tmp_path, with_index=with_index)
    (tmp_path / _shard(2, 3)).unlink()
    assert _refused(tmp_path).file == str(tmp_path / _shard(2, 3))


def test_an_index_that_spells_a_shard_in_two_ways(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1), "b": torch.ones(1)}
    save_file(tensors, tmp_path / "x.safetensors")
    weight_map = {"a": "x.safetensors", "b": "./x.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert find_tensors(tmp_path).keys() == tensors.keys()


def test_a_tensor_that_only_the_index_knows(tmp_path: Path) -> None:
    _save_shards(tmp_path, with_index=True)
    save_file({"t1": torch.zeros(2, 2)}, tmp_path / _shard(2, 3))
    error = _refused(tmp_path)
    assert (error.file, error.tensor) == (str(tmp_path / _shard(2, 3)), "t4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        "{",
        '{"weight_map": {"a": 1e999}}',
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        '{"weight_map":' + "[" * 100_000,
    ],
    ids=_beginning,
)
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert _refused(tmp_path).file.endswith("index.json")


def test_a_shard_whose_name_no_file_can_have(tmp_path: Path) -> None:
    weight_map = {"a": "x" * 5000}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert _refused(tmp_path).found == "File name too long"


def test_a_tensor_that_two_shards_hold(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"twice": torch.zeros(1)}, tmp_path / _shard(number, 2))
    error = _refused(tmp_path)
    assert (error.tensor, error.file) == ("twice", str(tmp_path / _shard(2, 2)))


@pytest.mark.parametrize("num_bytes_left", [0, 7, 8, 40, -1])
def test_a_truncated_file(tmp_path: Path, num_bytes_left: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"t": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:num_bytes_left])
    assert _refused(tmp_path).file == str(file)


def test_a_file_that_shrinks_after_it_was_listed(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"t": torch.zeros(100)}, file)
    stored = find_tensors(tmp_path)["t"]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="400 bytes, found the file's end after 390"):
        read_bytes(stored, 0, 400)
    file.unlink()
    with pytest.raises(WeightsError, match="No such file"):
        read_bytes(stored, 0, 400)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": ["x"], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": 5, "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.9], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, float("inf")]},
        {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]},
        {"dtype": "F32", "shape": [10**4000, 10**4000], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2**62] * 1000, "data_offsets": [0, 8]},
        [],
    ],
    ids=_beginning,
)
def test_a_header_that_contradicts_itself(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "t": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    error = _refused(tmp_path)
    assert (error.file, error.tensor) == (str(file), "t")


def test_a_name_that_stands_twice_in_a_header(tmp_path: Path) -> None:
    entry = b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    header = b'{"a": ' + entry + b', "t": ' + entry + b', "t": ' + entry + b"}"
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "'t' twice" in _refused(tmp_path).found


@pytest.mark.parametrize("header", [b"not json", b"[1]", b"[]", b'[["a", {}]]', b'"text"', b"\xff\xff"])
def test_a_header_that_is_no_object(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "header of JSON" in _refused(tmp_path).expected


def test_agrees_with_the_reference_reader(small_checkpoint: Path) -> None:
    reference = load_file(small_checkpoint / "model.safetensors")
    found = find_tensors(small_checkpoint)
    assert {name: stored.shape for name, stored in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in reference.items()
    }
