"""One error of each class of a tree, made from what its ``__init__`` says it takes."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)

_ARGUMENTS: dict[str, Any] = {
    "int": 3,
    "object": ("x", 7),
    "str": "some text",
    "str | Path": "model.safetensors",
    "Mapping[str, int | str] | None": {"limit": 3},
}
"""An argument for every annotation that there is."""


def tree_below(root: type[E]) -> list[type[E]]:
    """Lists a class and all that are derived from it."""
    return [root, *(kind for child in root.__subclasses__() for kind in tree_below(child))]


def made(kind: type[E]) -> E:
    """Makes an error of a class."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return kind("what went wrong")
    return kind(*(_ARGUMENTS[one.annotation] for one in parameters))
