"""Finds the tensors of a checkpoint's files, and reads bytes of them.

Knows the safetensors format and the three ways in which checkpoints are cut into files. Knows no model:
what a tensor means is ``layouts``' business.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch

from .errors import WeightsError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Kinds of numbers that a model's weights may have, by the format's names."""

_MAX_HEADER_BYTES = 100_000_000
_MAX_COUNT = 2**63 - 1
_MAX_DIMS = 64
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
    with opened(stored) as file:
        num_read = read_into(file, stored.start + offset, memoryview(buffer))
    if num_read < num_bytes:
        raise early_end_error(stored, offset + num_read)
    return bytes(buffer)


@contextmanager
def opened(stored: StoredTensor) -> Generator[FileIO]:
    """Open the file of a tensor.

    Raises:
        WeightsError: It cannot be opened, or not be read by whoever has it open.
    """
    try:
        with stored.file.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise WeightsError(stored.file, stored.name, "a readable file", error.strerror or error) from error


def read_into(file: FileIO, start: int, target: memoryview) -> int:
    """Fill the target with bytes from ``start`` on; returns how many there were until the file's end."""
    file.seek(start)
    done = 0
    while done < len(target) and (num_read := file.readinto(target[done:])):
        done += num_read
    return done


def early_end_error(stored: StoredTensor, num_bytes: int) -> WeightsError:
    """The error of a file that holds only so many bytes of a tensor."""
    found = f"the file's end after {num_bytes}"
    return WeightsError(stored.file, stored.name, f"{stored.num_bytes} bytes", found)


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
        shard_of = _parsed(index.read_bytes())["weight_map"]
        file_of = {shard: index.parent / shard for shard in set(shard_of.values())}
    except OSError as error:
        raise WeightsError(index, "", "a readable file", error.strerror or error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(index, "", "JSON with a weight_map from tensors to files", repr(error)) from error
    files = sorted(set(file_of.values()))
    for file in files:
        if not _is_file(file):
            raise WeightsError(file, "", f"a shard that {index.name} names", "no such file")
    found = _merge(files)
    for name, shard in shard_of.items():
        if name not in found:
            raise WeightsError(file_of[shard], name, f"a tensor that {index.name} names", "nothing")
    return found


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError as error:  # a name too long, a folder that may not be read
        raise WeightsError(file, "", "a readable file", error.strerror or error) from error


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
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                found = f"a file of {size} bytes whose header should take {length}"
                raise WeightsError(file, "", "a whole safetensors file", found)
            header = content.read(length)
    except OSError as error:
        raise WeightsError(file, "", "a readable file", error.strerror or error) from error
    try:
        entries = _parsed(header)
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(file, "", "a safetensors header of JSON", repr(error)) from error
    entries.pop("__metadata__", None)
    return [_read_entry(file, size, 8 + length, name, entry) for name, entry in entries.items()]


def _read_entry(file: Path, size: int, data_start: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], _counts(entry["shape"])
        begin, end = _counts(entry["data_offsets"])
        if type(dtype) is not str:
            raise TypeError(f"not a dtype: {dtype!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(file, name, "dtype, shape and data_offsets", repr(error)) from error
    num_bytes = end - begin
    expected = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else num_bytes
    if num_bytes < 0 or num_bytes != expected:
        raise WeightsError(file, name, f"{expected} bytes for {dtype} {list(shape)}", f"{num_bytes} bytes")
    if data_start + end > size:
        found = f"a file of {size} bytes (truncated)"
        raise WeightsError(file, name, f"its bytes up to {data_start + end}", found)
    return StoredTensor(
        name=name, file=file, dtype=dtype, shape=shape, start=data_start + begin, num_bytes=num_bytes
    )


def _counts(values: Any) -> tuple[int, ...]:
    """A list of JSON that holds counts and nothing else."""
    counts = cast("list[Any]", values)
    if type(values) is not list or len(counts) > _MAX_DIMS:
        raise TypeError(f"not a list of counts: {counts!r}")
    for n in counts:
        if type(n) is not int or not 0 <= n <= _MAX_COUNT:
            raise TypeError(f"not a count: {n!r}")
    return tuple(counts)


def _parsed(document: bytes) -> dict[str, Any]:
    """The object of a JSON document, in which no name stands twice."""
    found = json.loads(document, object_pairs_hook=_each_once)
    if not isinstance(found, dict):
        raise TypeError(f"not an object: {type(found).__name__}")
    return cast("dict[str, Any]", found)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} twice in one object")
    return found
