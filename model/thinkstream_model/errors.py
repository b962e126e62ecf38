"""What can be wrong with a model: its config, its weights, its tokenizer or a chat.

    ModelError
    ├── ConfigError (ValueError)    file, field, expected, found
    ├── WeightsError (ValueError)   file, tensor, expected, found
    ├── TokenizerError              file, expected, found
    └── TemplateError               the chat template cannot render these messages

Each says in one line which file to open and what to look for there. Whoever runs a model translates
these into its own tree; nothing here knows that there is one.
"""

from __future__ import annotations

from pathlib import Path


class ModelError(Exception):
    """Root of the tree."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled by text and attributes, so that a subclass may take whatever arguments it likes."""
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[ModelError], args: tuple[object, ...]) -> ModelError:
    return kind.__new__(kind, *args)


class ConfigError(ModelError, ValueError):
    """A config file is missing, unreadable, or a field of it does not fit.

    Args:
        file: The file, or the folder that should hold it.
        field: Name of the field, dotted where nested; empty when the file as a whole is meant.
        expected: What would be right, in words.
        found: What is there.
    """

    def __init__(self, file: str | Path, field: str, expected: str, found: object) -> None:
        self.file, self.field, self.expected, self.found = str(file), field, expected, _shown(found)
        super().__init__(_line(self.file, self.field, self.expected, self.found))


class WeightsError(ModelError, ValueError):
    """A weights file is broken, or a tensor is missing, surplus or mis-shaped.

    Args:
        file: The file, or the folder that should hold it.
        tensor: Name of the tensor as the file spells it; empty when the file as a whole is meant.
        expected: Shape or kind that would be right, in words.
        found: What is there.
    """

    def __init__(self, file: str | Path, tensor: str, expected: str, found: object) -> None:
        self.file, self.tensor, self.expected, self.found = str(file), tensor, expected, _shown(found)
        super().__init__(_line(self.file, self.tensor, self.expected, self.found))


class TokenizerError(ModelError):
    """A tokenizer's files are missing or do not make a tokenizer.

    Args:
        file: The file, or the folder that should hold it.
        expected: What would be right, in words.
        found: What is there.
    """

    def __init__(self, file: str | Path, expected: str, found: object) -> None:
        self.file, self.expected, self.found = str(file), expected, _shown(found)
        super().__init__(_line(self.file, "", self.expected, self.found))


class TemplateError(ModelError):
    """The chat template refused these messages, failed on them, or would take too long."""


def _shown(found: object) -> str:
    text = " ".join(str(found).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _line(file: str, place: str, expected: str, found: str) -> str:
    where = f"{file}: {place}" if place else file
    return f"{where}: expected {expected}, found {found}"
