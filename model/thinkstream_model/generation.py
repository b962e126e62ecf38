"""How a checkpoint wants to be sampled where a request does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

from .errors import ConfigError
from .json_files import read_object

_FILE = "generation_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling defaults of one checkpoint.

    The values here stand for what ``generation_config.json`` leaves out: they are what the released
    model's card recommends.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        max_tokens: Tokens to generate at most; None where the file does not say.
        eos_token_ids: Ids that end a text, in ascending order.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: str | Path, eos_token_ids: tuple[int, ...] = ()) -> GenerationDefaults:
        """Read the defaults of a checkpoint's folder.

        Args:
            path: The folder; it need not have a ``generation_config.json``.
            eos_token_ids: The tokenizer's ends of text, joined with those that the file names.

        Raises:
            ConfigError: The file is broken, or a value is outside its range.
        """
        released, fields = cls(), _Fields(Path(path) / _FILE)
        temperature = fields.number("temperature", released.temperature, 0.0, 100.0)
        return cls(
            temperature=0.0 if fields.values.get("do_sample") is False else temperature,
            top_p=fields.number("top_p", released.top_p, 1e-9, 1.0),
            top_k=fields.integer("top_k", released.top_k, 0),
            min_p=fields.number("min_p", released.min_p, 0.0, 1.0),
            repetition_penalty=fields.number("repetition_penalty", released.repetition_penalty, 1e-9, 10.0),
            max_tokens=fields.integer("max_new_tokens", None, 1),
            eos_token_ids=tuple(sorted({*eos_token_ids, *fields.ids("eos_token_id")})),
        )


class _Fields:
    """The values of the file, each checked as it is taken; null counts as left out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.values = read_object(file)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise self._refuse(name, "a number")
        if not low <= value <= high:
            raise self._refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    @overload
    def integer(self, name: str, default: int, low: int) -> int: ...
    @overload
    def integer(self, name: str, default: None, low: int) -> int | None: ...
    def integer(self, name: str, default: int | None, low: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not int or value < low:
            raise self._refuse(name, f"an integer of at least {low}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        value = self.values.get(name)
        if value is None:
            return ()
        items = cast("list[object]", value) if isinstance(value, list) else [value]
        ids = [item for item in items if type(item) is int and item >= 0]
        if len(ids) != len(items):
            raise self._refuse(name, "an id or a list of ids")
        return tuple(ids)

    def _refuse(self, name: str, expected: str) -> ConfigError:
        return ConfigError(self._file, name, expected, self.values[name])
