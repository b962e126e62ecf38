"""msgpack within limits: what the records' bytes are made of. Knows no record."""

from __future__ import annotations

import math
from typing import Any, NoReturn, TypeGuard, cast

import msgpack  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from thinkstream_client.errors import RecordInvalid

MAX_NESTING = 16


def amount(value: bytes) -> float:
    """Reads a number from 0 that stands in Redis as text; 0 for whatever else others wrote there."""
    try:
        found = float(value)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0


def pack(value: object, *, is_strict: bool = False) -> bytes:
    """Packs plain values. Half a surrogate pair in a text becomes a question mark.

    Raises:
        UnicodeEncodeError: There is one, and ``is_strict`` is set.
    """
    return cast("bytes", msgpack.packb(value, unicode_errors="strict" if is_strict else "replace"))


def unpack(data: bytes, max_bytes: int) -> Any:
    """Unpacks msgpack of a limited size and nesting, without extension types or double keys.

    Raises:
        RecordInvalid: It is not that.
    """
    if len(data) > max_bytes:
        raise RecordInvalid(f"{len(data)} bytes, the limit is {max_bytes}")
    try:
        value = cast(
            "object",
            msgpack.unpackb(
                data, strict_map_key=False, object_pairs_hook=_map_of, ext_hook=_refuse_extension
            ),
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RecordInvalid(f"not msgpack: {type(error).__name__}") from None
    _check_nesting(value)
    return value


def is_map(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether an unpacked value is a map."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether an unpacked value is an array."""
    return isinstance(value, list)


def _map_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise RecordInvalid("a key stands twice in a map")
    return record


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise RecordInvalid(f"extension type {code}")


def _check_nesting(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_NESTING):
        inner: list[object] = []
        for one in level:
            if is_map(one):
                inner.extend(one.values())
            elif is_list(one):
                inner.extend(one)
            elif isinstance(one, msgpack.Timestamp):
                raise RecordInvalid("extension type -1")
        if not inner:
            return
        level = inner
    raise RecordInvalid(f"nested deeper than {MAX_NESTING}")
