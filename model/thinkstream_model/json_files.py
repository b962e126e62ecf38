"""Reads the small JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from .errors import ConfigError


def read_object(file: Path) -> dict[str, object]:
    """The JSON object in a file; empty where there is no such file.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        document = cast("object", json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(file, "", "a readable file", error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(file, "", "JSON", error) from error
    if not isinstance(document, dict):
        raise ConfigError(file, "", "a JSON object", type(document).__name__)
    return cast("dict[str, object]", document)
