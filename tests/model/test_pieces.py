from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from thinkstream_model.checkpoint_files import StoredTensor, find_tensors
from thinkstream_model.errors import WeightsError
from thinkstream_model.pieces import Piece, PieceReader, cut_pieces

_CPU = torch.device("cpu")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("thinkstream_model.pieces._PIECE_BYTES", 1 << 10)
    return 1 << 10


def _stored(name: str, file: str, start: int, numel: int, dtype: str = "F32") -> StoredTensor:
    num_bytes = numel * {"F32": 4, "BF16": 2}[dtype]
    return StoredTensor(
        name=name, file=Path(file), dtype=dtype, shape=(numel,), start=start, num_bytes=num_bytes
    )


def _cut(*stored: StoredTensor) -> list[Piece]:
    return cut_pieces((tensor, torch.empty(tensor.shape)) for tensor in stored)


def _outline(pieces: list[Piece]) -> list[list[tuple[str, int, int]]]:
    return [[(part.stored.name, part.offset, part.num_bytes) for part in piece.parts] for piece in pieces]


def _read(
    stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device = _CPU
) -> dict[str, torch.Tensor]:
    """All tensors, read by one reader."""
    filled = {name: torch.empty(t.shape, dtype=dtype, device=device) for name, t in stored.items()}
    reader = PieceReader(device)
    for piece in cut_pieces((tensor, filled[name]) for name, tensor in stored.items()):
        reader.read(piece)
    reader.wait()
    return filled


def _assert_equal(filled: Mapping[str, torch.Tensor], originals: Mapping[str, torch.Tensor]) -> None:
    for name, original in originals.items():
        assert torch.equal(filled[name].cpu(), original.to(filled[name].dtype)), name


@pytest.mark.usefixtures("small_pieces")
def test_neighbours_come_in_one_piece_up_to_its_size() -> None:
    a, b, c = _stored("a", "x", 8, 100), _stored("b", "x", 408, 100), _stored("c", "x", 808, 100)
    pieces = _cut(b, c, a)
    assert _outline(pieces) == [[("a", 0, 400), ("b", 0, 400), ("c", 0, 224)], [("c", 224, 176)]]
    assert [(piece.start, piece.num_bytes) for piece in pieces] == [(8, 1024), (1032, 176)]
    assert [part.target.numel() for part in pieces[0].parts] == [100, 100, 56]


@pytest.mark.usefixtures("small_pieces")
def test_a_large_tensor_comes_in_several_pieces() -> None:
    outline = _outline(_cut(_stored("a", "x", 0, 600), _stored("b", "x", 2400, 1)))
    assert outline == [[("a", 0, 1024)], [("a", 1024, 1024)], [("a", 2048, 352), ("b", 0, 4)]]


@pytest.mark.usefixtures("small_pieces")
def test_a_number_is_not_cut() -> None:
    halves, wholes = _stored("halves", "x", 0, 257, "BF16"), _stored("wholes", "x", 514, 256)
    assert _outline(_cut(halves, wholes)) == [[("halves", 0, 514)], [("wholes", 0, 1024)]]


@pytest.mark.parametrize(
    "second",
    [
        _stored("b", "y", 400, 10),  # in another file
        _stored("b", "x", 404, 10),  # behind a gap
        _stored("b", "x", 400, 10, "BF16"),  # of another kind
    ],
)
def test_others_come_in_pieces_of_their_own(second: StoredTensor) -> None:
    assert [len(piece.parts) for piece in _cut(_stored("a", "x", 0, 100), second)] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_converts_what_the_destination_does_not_hold(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"t": torch.randn(9_000_001).to(dtype)}  # more than a piece
    save_file(tensors, tmp_path / "model.safetensors")
    for wanted in (torch.float32, torch.bfloat16):
        _assert_equal(_read(find_tensors(tmp_path), wanted), tensors)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_pieces")
def test_one_reader_serves_small_and_large_tensors_of_several_kinds(
    tmp_path: Path, wanted: torch.dtype
) -> None:
    tensors = {f"t{number}": torch.randn(7 * number) for number in range(20)}
    tensors |= {"large": torch.randn(7_000), "empty": torch.empty(0, 4), "odd": torch.randn(3).bfloat16()}
    tensors |= {f"half{number}": torch.randn(3, number).half() for number in range(1, 9)}
    save_file(tensors, tmp_path / "model.safetensors")
    _assert_equal(_read(find_tensors(tmp_path), wanted), tensors)


class _LateDevice:
    """Takes what it was sent only when it is waited for, as late as a device may."""

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.empty(1 << 10, dtype=torch.uint8)
        self._under_way: Piece | None = None

    def send(self, piece: Piece) -> None:
        assert self._under_way is None, "sent twice without a wait"
        self._under_way = piece

    def wait(self) -> None:
        if self._under_way is not None:
            begin = 0
            for part in self._under_way.parts:
                source = self.memory[begin : begin + part.num_bytes].view(torch.float32)
                part.target.copy_(source)
                begin += part.num_bytes
            self._under_way = None


@pytest.mark.usefixtures("small_pieces")
def test_overwrites_nothing_that_the_device_has_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkstream_model.pieces._Staging", _LateDevice)
    tensors = {f"t{number}": torch.randn(37 * number) for number in range(30)}
    save_file(tensors, tmp_path / "model.safetensors")
    _assert_equal(_read(find_tensors(tmp_path), torch.bfloat16), tensors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_takes_the_same_as_the_host(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {f"t{number}": torch.randn(1_000_003 * number).bfloat16() for number in range(8)}
    save_file(tensors, tmp_path / "model.safetensors")
    _assert_equal(_read(find_tensors(tmp_path), dtype, torch.device("cuda")), tensors)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_a_file_that_ends_within_a_piece_is_told_by_the_tensor_that_lacks(
    tmp_path: Path, wanted: torch.dtype
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(100) for name in "abc"}, file)
    stored = find_tensors(tmp_path)
    file.write_bytes(file.read_bytes()[:-410])
    with pytest.raises(WeightsError, match="b: expected 400 bytes, found the file's end after 390"):
        _read(stored, wanted)
    file.unlink()
    with pytest.raises(WeightsError, match="a: expected a readable file, found No such file"):
        _read(stored, wanted)
