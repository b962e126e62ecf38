"""Reads stored tensors to where they belong, many small ones as one piece.

A model of experts has thousands of tensors of a few megabytes. Readers that turned to the interpreter for
each of them would wait for one another, and for whatever else it does meanwhile; so a piece of a file is
read at once, and its tensors leave for the device by one call. Knows no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint_files import DTYPES, StoredTensor, early_end_error, opened, read_into
from .errors import WeightsError

_PIECE_BYTES = 16 << 20
_NUM_STAGING = 2


class Part(NamedTuple):
    """A stored tensor, or as much of one as there is room for in a piece.

    Attributes:
        stored: The tensor.
        offset: Where the part begins, in bytes from the tensor's beginning.
        num_bytes: Its size in the file.
        target: What it fills, flat.
    """

    stored: StoredTensor
    offset: int
    num_bytes: int
    target: Tensor


@dataclass(slots=True)
class Piece:
    """Parts of one kind of number that lie side by side in one file.

    Attributes:
        parts: In the file's order, one at least.
        num_bytes: Of all parts.
    """

    parts: list[Part] = field(default_factory=list[Part])
    num_bytes: int = 0

    @property
    def start(self) -> int:
        """Where its bytes begin, counted from the file's beginning."""
        first = self.parts[0]
        return first.stored.start + first.offset

    def goes_on_with(self, stored: StoredTensor) -> bool:
        """Whether a tensor begins where the piece ends, and is of its kind."""
        first, end = self.parts[0].stored, self.start + self.num_bytes
        return (stored.file, stored.dtype, stored.start) == (first.file, first.dtype, end)

    def take(self, stored: StoredTensor, offset: int, flat: Tensor) -> int:
        """Take what there is room for of a tensor's bytes from ``offset`` on; returns how many."""
        itemsize = DTYPES[stored.dtype].itemsize
        room = (_PIECE_BYTES - self.num_bytes) // itemsize * itemsize
        num_bytes = min(stored.num_bytes - offset, room)
        if num_bytes > 0:
            target = flat[offset // itemsize : (offset + num_bytes) // itemsize]
            self.parts.append(Part(stored, offset, num_bytes, target))
            self.num_bytes += num_bytes
        return num_bytes

    def early_end_error(self, num_bytes: int) -> WeightsError:
        """The error of a file that holds only so many bytes of the piece; it names the tensor."""
        parts = iter(self.parts)
        part = next(parts)
        while num_bytes >= part.num_bytes:
            num_bytes -= part.num_bytes
            part = next(parts)
        return early_end_error(part.stored, part.offset + num_bytes)


def cut_pieces(fillings: Iterable[tuple[StoredTensor, Tensor]]) -> list[Piece]:
    """Cut stored tensors into pieces, in the order of their files.

    Args:
        fillings: Tensors, and what each fills: contiguous and of the stored shape.
    """
    pieces: list[Piece] = []
    for stored, destination in sorted(fillings, key=lambda filling: (filling[0].file, filling[0].start)):
        flat = destination.view(-1)
        done = pieces[-1].take(stored, 0, flat) if pieces and pieces[-1].goes_on_with(stored) else 0
        while done < stored.num_bytes:
            pieces.append(Piece())
            done += pieces[-1].take(stored, done, flat)
    return pieces


class PieceReader:
    """Reads pieces to one device; each thread has its own.

    Bytes that need no conversion go straight into a tensor of the host. All others pass through two staging
    buffers, pinned where the target is a CUDA device, which takes from one while the other is filled. So the
    host never holds a second copy of a model.

    Args:
        device: That of all targets.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which gave the targets their memory
        self._staging: deque[_Staging] = deque()

    def read(self, piece: Piece) -> None:
        """Fill a piece's targets, converting its kind of number; a CUDA device has all only after ``wait``.

        Raises:
            WeightsError: The file cannot be read, or ends early.
        """
        first = piece.parts[0]
        with opened(first.stored) as file:
            if self._device.type == "cpu" and first.target.dtype == DTYPES[first.stored.dtype]:
                for stored, offset, num_bytes, target in piece.parts:
                    num_read = read_into(file, stored.start + offset, _memory(target))
                    if num_read < num_bytes:
                        raise early_end_error(stored, offset + num_read)
                return
            staging = self._next_staging()
            num_read = read_into(file, piece.start, _memory(staging.memory[: piece.num_bytes]))
        if num_read < piece.num_bytes:
            raise piece.early_end_error(num_read)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            staging.send(piece)

    def wait(self) -> None:
        """Wait until the device has everything."""
        for staging in self._staging:
            staging.wait()

    def _next_staging(self) -> _Staging:
        """The buffer that has been on its way for the longer time, once it has arrived."""
        if len(self._staging) < _NUM_STAGING:
            staging = _Staging(self._device)
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
        self._device, is_cuda = device, device.type == "cuda"
        self.memory = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=is_cuda)
        self._is_taken = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def send(self, piece: Piece) -> None:
        """Tell the device to take a piece from the memory, converting its kind of number on its side."""
        targets = [part.target for part in piece.parts]
        numbers = self.memory[: piece.num_bytes].view(DTYPES[piece.parts[0].stored.dtype])
        if numbers.dtype != targets[0].dtype:
            numbers = numbers.to(self._device, non_blocking=True)
        sources = torch.split(numbers, [target.numel() for target in targets])
        # No public call takes many tensors, and a loop would wait for the interpreter at each.
        torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            targets, sources, non_blocking=True
        )
        if self._is_taken is not None:
            self._is_taken.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Wait until it has."""
        if self._is_taken is not None:
            self._is_taken.synchronize()


def _memory(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data
