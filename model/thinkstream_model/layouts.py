"""Which stored tensor goes where: the spellings that checkpoints of this family use.

The released layout names ``thinker.model.layers.N...`` with one tensor per expert and matrix. Others put
``language_model.`` in between, stack the experts of a layer (no ``.weight`` suffix then), or leave the
leading ``thinker.`` out. Any mixture is taken, as long as every place is filled exactly once. The parts
of an Omni checkpoint that are not the Thinker's text decoder are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .checkpoint_files import DTYPES, StoredTensor
from .config import ThinkerConfig
from .errors import WeightsError
from .parameters import ThinkerWeights

_OTHER_PARTS = re.compile(r"(talker|code2wav|(thinker\.)?(model\.)?(audio_tower|visual))\.")
_TEXT = re.compile(
    r"(thinker\.)?(model\.(language_model\.)?(?P<body>(embed_tokens|norm|layers)\..+)|(?P<head>lm_head\..+))"
)
_EXPERT = re.compile(
    r"(?P<stack>layers\.\d+\.mlp\.experts)\.(?P<expert>\d+)\.(?P<matrix>gate|up|down)_proj\.weight"
)
_STACKED = re.compile(r"layers\.\d+\.mlp\.experts\.(gate_up|down)_proj")

Matrix = Literal["gate", "up", "down"]


class Place(NamedTuple):
    """A whole destination, or one expert's matrix within a stacked one."""

    name: str
    expert: int | None = None
    matrix: Matrix | None = None

    def within(self, destinations: Mapping[str, Tensor]) -> Tensor | None:
        """The tensor to fill, a contiguous view; None where the model has no such place."""
        whole = destinations.get(self.name)
        if whole is None or self.expert is None:
            return whole
        if self.expert >= whole.shape[0]:
            return None
        one = whole[self.expert]
        if self.matrix == "down":
            return one
        width = one.shape[0] // 2
        return one[:width] if self.matrix == "gate" else one[width:]


class Copy(NamedTuple):
    """One stored tensor and its place."""

    stored: StoredTensor
    place: Place


def place_of(name: str) -> Place | None:
    """Where a tensor of this name would go; None for the parts that are not the text decoder's.

    Raises:
        ValueError: No layout has such a name.
    """
    if _OTHER_PARTS.match(name):
        return None
    text = _TEXT.fullmatch(name)
    if text is None:
        raise ValueError(name)
    canonical = text["body"] or text["head"]
    if expert := _EXPERT.fullmatch(canonical):
        return _expert_place(expert["stack"], int(expert["expert"]), expert["matrix"])
    return Place(canonical)


def text_tensors(stored: Mapping[str, StoredTensor]) -> list[Copy]:
    """The text decoder's tensors and their places, by name; those of other parts are left out.

    Raises:
        WeightsError: A tensor whose name no layout has.
    """
    copies: list[Copy] = []
    for name in sorted(stored):
        try:
            place = place_of(name)
        except ValueError:
            raise _surplus(stored[name]) from None
        if place is not None:
            copies.append(Copy(stored[name], place))
    return copies


def check_copies(copies: Iterable[Copy], config: ThinkerConfig, folder: Path) -> None:
    """Make sure that every place of the model is filled exactly once, by a tensor of its shape.

    Raises:
        WeightsError: A tensor is missing, surplus, stored under two spellings, of another shape or rank,
            or not of floating point numbers.
    """
    destinations = ThinkerWeights.empty(config, "meta", torch.float32).named_destinations()
    filled: dict[Place, StoredTensor] = {}
    spelling = ""
    for stored, place in copies:
        destination = place.within(destinations)
        if destination is None:
            raise _surplus(stored)
        _check_kind(stored, tuple(destination.shape))
        spelling = spelling or ("thinker." if stored.name.startswith("thinker.") else "")
        for part in _parts(place, destinations):
            if part in filled:
                found = f"{filled[part].name} too"
                raise WeightsError(stored.file, stored.name, "one tensor for one place", found)
            filled[part] = stored
    missing = [
        part for name in destinations for part in _parts(Place(name), destinations) if part not in filled
    ]
    if missing:
        raise _missing(missing, destinations, folder, spelling)


def _expert_place(stack: str, expert: int, matrix: str) -> Place:
    if matrix == "down":
        return Place(f"{stack}.down_proj", expert, "down")
    return Place(f"{stack}.gate_up_proj", expert, "gate" if matrix == "gate" else "up")


def _parts(place: Place, destinations: Mapping[str, Tensor]) -> list[Place]:
    """The smallest places that a place covers, so that stacked and single experts can be compared."""
    if place.expert is not None or not _STACKED.fullmatch(place.name):
        return [place]
    matrices: tuple[Matrix, ...] = ("down",) if place.name.endswith("down_proj") else ("gate", "up")
    experts = range(destinations[place.name].shape[0])
    return [Place(place.name, expert, matrix) for expert in experts for matrix in matrices]


def _check_kind(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise WeightsError(stored.file, stored.name, f"shape {list(shape)}", f"shape {list(stored.shape)}")
    if stored.dtype not in DTYPES:
        raise WeightsError(stored.file, stored.name, f"one of {', '.join(DTYPES)}", stored.dtype)


def _surplus(stored: StoredTensor) -> WeightsError:
    found = f"{stored.dtype} {list(stored.shape)}"
    return WeightsError(stored.file, stored.name, "no tensor of this name in a model of this config", found)


def _missing(
    missing: list[Place], destinations: Mapping[str, Tensor], folder: Path, spelling: str
) -> WeightsError:
    place = missing[0]
    destination = place.within(destinations)
    shape = list(destination.shape) if destination is not None else []
    name = place.name
    if place.expert is not None:
        name = f"{name.rpartition('.')[0]}.{place.expert}.{place.matrix}_proj.weight"
    if not name.startswith("lm_head."):
        name = f"model.{name}"
    others = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
    return WeightsError(folder, spelling + name, f"a tensor of shape {shape}", f"nothing{others}")
