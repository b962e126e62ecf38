"""Reads the fields of a config one by one and says which is wrong, in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from .errors import ConfigError

JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """One JSON object of a config and where it stands.

    Every reader raises ``ConfigError`` with the field's full name where the value is missing or of
    another kind.

    Attributes:
        file: For messages.
        prefix: Dotted names of the objects around this one; empty at the top.
        values: The object.
    """

    file: str
    prefix: str
    values: JsonObject

    def path(self, name: str) -> str:
        """The field's full name."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def refuse(self, name: str, expected: str) -> ConfigError:
        """An error that says what the field should be."""
        found = self.values.get(name, "nothing")
        return ConfigError(self.file, self.path(name), expected, found)

    def integer(self, name: str) -> int:
        """A required integer."""
        value = self.values.get(name)
        if type(value) is not int:
            raise self.refuse(name, "an integer")
        return value

    def number(self, name: str) -> float:
        """A required number."""
        value = self.values.get(name)
        if type(value) is int or type(value) is float:
            return float(value)
        raise self.refuse(name, "a number")

    def boolean(self, name: str) -> bool:
        """A required truth value."""
        value = self.values.get(name)
        if type(value) is not bool:
            raise self.refuse(name, "true or false")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return ()
        items = cast("list[object]", value) if isinstance(value, list | tuple) else [None]
        numbers = [item for item in items if type(item) is int]
        if len(numbers) != len(items):
            raise self.refuse(name, "a list of integers")
        return tuple(numbers)

    def inner(self, name: str) -> ConfigFields | None:
        """An object within this one, if it is there."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(name, "an object")
        return replace(self, prefix=self.path(name), values=cast("JsonObject", value))
