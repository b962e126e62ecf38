"""Loads a checkpoint's weights: each tensor straight from its file to its place on the device."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint_files import DTYPES, StoredTensor, find_tensors
from .config import ThinkerConfig
from .errors import WeightsError
from .layouts import Copy, check_copies, place_of, text_tensors
from .parameters import ThinkerWeights
from .pieces import PieceReader, cut_pieces
from .thinker import Thinker

logger = logging.getLogger(__name__)

_MIN_READERS = 4
_MAX_READERS = 16


def load_thinker(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Thinker:
    """Load the Thinker of a checkpoint, with the operations that fit its device; see ``load_weights``."""
    return Thinker(load_weights(path, device=device, dtype=dtype))


def load_weights(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    before_reading: Callable[[ThinkerWeights], object] | None = None,
) -> ThinkerWeights:
    """Load the weights of a checkpoint's Thinker; its other parts are passed over.

    Everything is checked against the config before the first byte of a tensor is read or memory is
    taken for it. The host never holds more than the destination and two staging buffers a reader.

    Args:
        path: A folder with ``config.json`` and weights in any layout and arrangement.
        device: Where the weights go.
        dtype: Kind of their numbers; None keeps the checkpoint's own, which is the embedding's.
        before_reading: Called with the weights, which are in their places and hold nothing yet: whatever else
            takes all cores is done sooner before the readers start than beside them.

    Raises:
        ConfigError: The config is missing or does not describe a Thinker.
        WeightsError: Files are missing or broken, or their tensors are not the config's.
    """
    begun = time.monotonic()
    folder = Path(path)
    config = ThinkerConfig.from_json(folder)
    logger.info("loading the Thinker from %s\n%s", folder, config.describe())
    copies = _checked_copies(find_tensors(folder), config, folder)
    weights = ThinkerWeights.empty(config, device, dtype or _own_dtype(copies))
    if before_reading is not None:
        before_reading(weights)
    _fill(copies, weights)
    num_bytes = sum(copy.stored.num_bytes for copy in copies)
    logger.info("loaded %d tensors, %d bytes, in %.1f s", len(copies), num_bytes, time.monotonic() - begun)
    return weights


def _checked_copies(stored: Mapping[str, StoredTensor], config: ThinkerConfig, folder: Path) -> list[Copy]:
    """Which tensor goes where, once every place of the model has one.

    Raises:
        WeightsError: They are not the config's. Of a surplus tensor it also says which one is missing: as a
            rule that is the same one under another name.
    """
    try:
        copies = text_tensors(stored)
        check_copies(copies, config, folder)
    except WeightsError as error:
        placed = _placed(stored, config)
        if error.tensor in placed or error.tensor not in stored:
            raise
        try:
            check_copies(text_tensors(placed), config, folder)
        except WeightsError as other:
            if other.tensor not in stored:
                found = f"{error.found}, and for {other.tensor} {other.found}"
                raise WeightsError(error.file, error.tensor, error.expected, found) from None
        raise
    return copies


def _placed(stored: Mapping[str, StoredTensor], config: ThinkerConfig) -> dict[str, StoredTensor]:
    """The tensors for which the model has a place."""
    destinations = ThinkerWeights.empty(config, "meta", torch.float32).named_destinations()
    placed: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        try:
            place = place_of(name)
        except ValueError:
            continue
        if place is not None and place.within(destinations) is not None:
            placed[name] = tensor
    return placed


def _own_dtype(copies: list[Copy]) -> torch.dtype:
    return next(DTYPES[c.stored.dtype] for c in copies if c.place.name == "embed_tokens.weight")


def _fill(copies: list[Copy], weights: ThinkerWeights) -> None:
    """Read every tensor to its place; what fails first ends all and is raised."""
    device = weights.embedding_VD.device
    # One iterator for all readers, each of which takes the next piece as soon as it can.
    pieces = iter(cut_pieces(_fillings(copies, weights)))

    errors: list[BaseException] = []

    @contextmanager
    def ending_all() -> Generator[None]:
        """Whoever fails leaves the others nothing to take."""
        try:
            yield
        except BaseException as error:
            errors.append(error)
            deque(pieces, maxlen=0)

    def fill() -> None:
        with ending_all():
            reader = PieceReader(device)
            try:
                for piece in pieces:
                    reader.read(piece)
            finally:
                reader.wait()  # who fails gives the targets' memory back

    num_readers = _num_readers(device)
    with ThreadPoolExecutor(num_readers, "weights") as readers, ending_all():
        wait([readers.submit(fill) for _ in range(num_readers)])
    if errors:
        raise errors[0]


def _fillings(copies: list[Copy], weights: ThinkerWeights) -> Iterator[tuple[StoredTensor, Tensor]]:
    destinations = weights.named_destinations()
    for stored, place in copies:
        destination = place.within(destinations)
        assert destination is not None, "check_copies has seen every place"
        yield stored, destination


def _num_readers(device: torch.device) -> int:
    """One per core for a device that takes as much as they read; the host converts with all cores anyway."""
    if device.type == "cpu":
        return _MIN_READERS
    return max(_MIN_READERS, min(_MAX_READERS, os.cpu_count() or 1))
