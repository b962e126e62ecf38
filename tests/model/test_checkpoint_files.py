from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]

from thinkstream_model.checkpoint_files import TensorReader, find_tensors, read_bytes
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
        destination = torch.empty(stored.shape)
        TensorReader().copy(stored, destination)
        assert torch.equal(destination, tensors[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_converts_what_the_destination_does_not_hold(tmp_path: Path, dtype: torch.dtype) -> None:
    # More than one staging buffer's worth, so that the pieces' borders are crossed.
    original = torch.randn(9_000_001).to(dtype)
    save_file({"t": original}, tmp_path / "model.safetensors")
    for wanted in (torch.float32, torch.bfloat16):
        destination = torch.empty(original.shape, dtype=wanted)
        TensorReader().copy(find_tensors(tmp_path)["t"], destination)
        assert torch.equal(destination, original.to(wanted))


def test_one_reader_serves_small_and_large_tensors(tmp_path: Path) -> None:
    tensors = {"small": torch.randn(3), "large": torch.randn(700_000), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    reader = TensorReader()
    for name, stored in find_tensors(tmp_path).items():
        destination = torch.empty(stored.shape, dtype=torch.bfloat16)
        reader.copy(stored, destination)
        assert torch.equal(destination, tensors[name].bfloat16())


class _LateDevice:
    """Takes what it was sent only when it is waited for, as late as a device may."""

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.empty(1 << 10, dtype=torch.uint8)
        self._under_way: tuple[torch.Tensor, torch.Tensor] | None = None

    def send(self, numbers: torch.Tensor, target: torch.Tensor) -> None:
        assert self._under_way is None, "sent twice without a wait"
        self._under_way = numbers, target

    def wait(self) -> None:
        if self._under_way is not None:
            numbers, target = self._under_way
            target.copy_(numbers)
            self._under_way = None


def test_overwrites_nothing_that_the_device_has_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_model.checkpoint_files._Staging", _LateDevice)
    monkeypatch.setattr("thinkstream_model.checkpoint_files._STAGING_BYTES", 1 << 10)
    tensors = {f"t{number}": torch.randn(37 * number) for number in range(30)}
    save_file(tensors, tmp_path / "model.safetensors")
    destinations = {name: torch.empty(t.shape, dtype=torch.bfloat16) for name, t in tensors.items()}
    reader = TensorReader()
    for name, stored in find_tensors(tmp_path).items():
        reader.copy(stored, destinations[name])
    reader.wait()
    for name, tensor in tensors.items():
        assert torch.equal(destinations[name], tensor.bfloat16()), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_takes_the_same_as_the_host(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {f"t{number}": torch.randn(1_000_003 * number).bfloat16() for number in range(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = find_tensors(tmp_path)
    reader = TensorReader()
    destinations = {name: torch.empty(t.shape, dtype=dtype, device="cuda") for name, t in tensors.items()}
    for name, stored in found.items():
        reader.copy(stored, destinations[name])
    reader.wait()
    for name, tensor in tensors.items():
        assert torch.equal(destinations[name].cpu(), tensor.to(dtype)), name


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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', "{"])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert _refused(tmp_path).file.endswith("index.json")


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
        TensorReader().copy(stored, torch.empty(100))
    file.unlink()
    with pytest.raises(WeightsError, match="No such file"):
        TensorReader().copy(stored, torch.empty(100))


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
        [],
    ],
)
def test_a_header_that_contradicts_itself(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "t": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    error = _refused(tmp_path)
    assert (error.file, error.tensor) == (str(file), "t")


@pytest.mark.parametrize("header", [b"not json", b"[1]", b'"text"', b"\xff\xff"])
def test_a_header_that_is_no_object(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "header of JSON" in _refused(tmp_path).expected


def test_agrees_with_the_reference_reader(small_checkpoint: Path) -> None:
    reference = load_file(small_checkpoint / "model.safetensors")
    found = find_tensors(small_checkpoint)
    assert {name: stored.shape for name, stored in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in reference.items()
    }
