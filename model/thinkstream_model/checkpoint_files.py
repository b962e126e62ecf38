"""Finds the tensors of a checkpoint's files and copies them, piece by piece, to where they belong.

Knows the safetensors format and the three ways in which checkpoints are cut into files. Knows no model:
what a tensor means is ``layouts``' business.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from .errors import WeightsError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Kinds of numbers that a model's weights may have, by the format's names."""

_MAX_HEADER_BYTES = 100_000_000
_STAGING_BYTES = 4 << 20
_NUM_STAGING = 2
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.safetensors)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: As the file spells it.
        dtype: The format's name of the kind of number.
        start: Where its bytes begin, counted from the file's beginning.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a checkpoint by name; reads only the files' headers.

    Takes, in this order, one ``model.safetensors``, the shards that an index names, or every shard there
    is.

    Raises:
        WeightsError: No weights, a missing shard, a broken or truncated file, a tensor stored twice.
    """
    if (folder / _SINGLE).is_file():
        return _merge([folder / _SINGLE])
    if (folder / _INDEX).is_file():
        return _by_index(folder / _INDEX)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(folder, "", f"{_SINGLE} or shards of it", "no such file")
    _check_shards(files)
    return _merge(files)


def read_bytes(stored: StoredTensor, offset: int, num_bytes: int) -> bytes:
    """Read some of a tensor's bytes, from ``offset`` within it.

    Raises:
        WeightsError: The file cannot be read, or ends early.
    """
    buffer = bytearray(num_bytes)
    try:
        with stored.file.open("rb", buffering=0) as file:
            _read_into(cast("BinaryIO", file), stored, offset, memoryview(buffer))
    except OSError as error:
        raise WeightsError(stored.file, stored.name, "a readable file", error.strerror or error) from error
    return bytes(buffer)


class TensorReader:
    """Copies stored tensors into given ones, all on one device; each thread has its own.

    Bytes that need no conversion go straight into a tensor of the host. All others pass through two small
    staging buffers, pinned where the target is a CUDA device, which takes from one while the other is filled.
    So the host never holds a second copy of a model.
    """

    def __init__(self) -> None:
        self._staging: deque[_Staging] = deque()

    def copy(self, stored: StoredTensor, destination: Tensor) -> None:
        """Fill ``destination``, which is contiguous and of the stored shape, converting its kind.

        A CUDA device may have the last bytes only after ``wait``; what its current stream is told to do
        comes behind them in any case.

        Raises:
            WeightsError: The file cannot be read, or ends early.
        """
        flat = destination.view(-1)
        try:
            with stored.file.open("rb", buffering=0) as file:
                if flat.device.type == "cpu" and flat.dtype == DTYPES[stored.dtype]:
                    _read_into(cast("BinaryIO", file), stored, 0, _memory(flat))
                else:
                    self._copy_staged(cast("BinaryIO", file), stored, flat)
        except OSError as error:
            reason = error.strerror or error
            raise WeightsError(stored.file, stored.name, "a readable file", reason) from error

    def wait(self) -> None:
        """Wait until the device has everything."""
        for staging in self._staging:
            staging.wait()

    def _copy_staged(self, file: BinaryIO, stored: StoredTensor, flat: Tensor) -> None:
        dtype = DTYPES[stored.dtype]
        step = _STAGING_BYTES // dtype.itemsize
        for begin in range(0, flat.numel(), step):
            part = flat[begin : begin + step]
            staging = self._next_staging(flat.device)
            piece = staging.memory[: part.numel() * dtype.itemsize]
            _read_into(file, stored, begin * dtype.itemsize, _memory(piece))
            staging.send(piece.view(dtype), part)

    def _next_staging(self, device: torch.device) -> _Staging:
        """The buffer that has been on its way for the longer time, once it has arrived."""
        if len(self._staging) < _NUM_STAGING:
            staging = _Staging(device)
        else:
            staging = self._staging.popleft()
            staging.wait()
        self._staging.append(staging)
        return staging


class _Staging:
    """Memory of the host from which a device takes what was read.

    Attributes:
        memory: uint8; not to be written between ``send`` and ``wait``.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.memory = torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=is_cuda)
        self._is_taken = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def send(self, numbers: Tensor, target: Tensor) -> None:
        """Tell the device to take numbers of the memory into a tensor, converting their kind on its side."""
        if numbers.dtype != target.dtype:
            numbers = numbers.to(target.device, non_blocking=True)
        target.copy_(numbers, non_blocking=True)
        if self._is_taken is not None:
            self._is_taken.record(torch.cuda.current_stream(target.device))

    def wait(self) -> None:
        """Wait until it has."""
        if self._is_taken is not None:
            self._is_taken.synchronize()


def _memory(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


def _read_into(file: BinaryIO, stored: StoredTensor, offset: int, target: memoryview) -> None:
    file.seek(stored.start + offset)
    done = 0
    while done < len(target):
        num_read = cast("Any", file).readinto(target[done:])
        if not num_read:
            found = f"the file's end after {offset + done}"
            raise WeightsError(stored.file, stored.name, f"{stored.num_bytes} bytes", found)
        done += num_read


def _merge(files: Iterable[Path]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for file in files:
        for stored in _read_header(file):
            other = found.setdefault(stored.name, stored)
            if other is not stored:
                raise WeightsError(file, stored.name, "each tensor once", f"it in {other.file.name} too")
    return found


def _by_index(index: Path) -> dict[str, StoredTensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(name): str(shard) for name, shard in weight_map.items()}
    except OSError as error:
        raise WeightsError(index, "", "a readable file", error.strerror or error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(index, "", "JSON with a weight_map from tensors to files", repr(error)) from error
    file_of = {shard: index.parent / shard for shard in set(shard_of.values())}
    files = sorted(set(file_of.values()))
    for file in files:
        if not file.is_file():
            raise WeightsError(file, "", f"a shard that {index.name} names", "no such file")
    found = _merge(files)
    for name, shard in shard_of.items():
        if name not in found:
            raise WeightsError(file_of[shard], name, f"a tensor that {index.name} names", "nothing")
    return found


def _check_shards(files: list[Path]) -> None:
    """Without an index, the shards' own names tell how many there are."""
    present = {file.name for file in files}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            head, _, of, total, tail = match.groups()
            for number in range(1, int(total) + 1):
                name = f"{head}{number:05d}{of}{total}{tail}"
                if name not in present:
                    raise WeightsError(file.parent / name, "", f"a shard beside {file.name}", "no such file")


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                found = f"a file of {size} bytes whose header should take {length}"
                raise WeightsError(file, "", "a whole safetensors file", found)
            header = opened.read(length)
    except OSError as error:
        raise WeightsError(file, "", "a readable file", error.strerror or error) from error
    try:
        entries: dict[str, Any] = dict(json.loads(header))
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(file, "", "a safetensors header of JSON", repr(error)) from error
    entries.pop("__metadata__", None)
    return [_read_entry(file, size, 8 + length, name, entry) for name, entry in entries.items()]


def _read_entry(file: Path, size: int, data_start: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(file, name, "dtype, shape and data_offsets", repr(error)) from error
    num_bytes = end - begin
    expected = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else num_bytes
    if begin < 0 or min(shape, default=0) < 0 or num_bytes < 0 or num_bytes != expected:
        raise WeightsError(file, name, f"{expected} bytes for {dtype} {list(shape)}", f"{num_bytes} bytes")
    if data_start + end > size:
        found = f"a file of {size} bytes (truncated)"
        raise WeightsError(file, name, f"its bytes up to {data_start + end}", found)
    return StoredTensor(
        name=name, file=file, dtype=dtype, shape=shape, start=data_start + begin, num_bytes=num_bytes
    )
