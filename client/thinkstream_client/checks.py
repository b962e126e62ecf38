"""What a caller gave, looked at before it is used. Each check names the field, the value and what is allowed.

Numbers are compared before they are computed with: Python's integers have no end, and its floats hold values
that are no numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar, cast

from .errors import InvalidRequest

T = TypeVar("T")

MAX_S = 365 * 86_400
"""The longest time that can be asked for: a year."""


def check_kind(field: str, value: object, kind: type[T], allowed: str) -> T:
    """Returns ``value`` if it is a ``kind``.

    Raises:
        InvalidRequest: It is not.
    """
    if not isinstance(value, kind):
        raise InvalidRequest(field, value, allowed)
    return value


def check_number(field: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """Returns ``value`` if it is a number from ``low`` to ``high``, without ``low`` where that is open.

    Raises:
        InvalidRequest: It is not.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        is_allowed = False
    else:
        is_allowed = low <= value <= high and not (open_low and value == low)  # no number is none of these
    if not is_allowed:
        raise InvalidRequest(field, value, f"a number in {'(' if open_low else '['}{low:.15g}, {high:.15g}]")
    return cast("float", value)


def check_integer(field: str, value: object, low: int, high: int) -> int:
    """Returns ``value`` if it is an integer from ``low`` to ``high``.

    Raises:
        InvalidRequest: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequest(field, value, f"an integer in [{low}, {high}]")
    return value


def check_wait(field: str, seconds: float | None) -> None:
    """Checks a time to wait; None, which waits for ever, is one.

    Raises:
        InvalidRequest: It is no number of seconds from 0 to a year.
    """
    if seconds is not None:
        check_number(field, seconds, 0, MAX_S)


def check_text(field: str, value: object, allowed: str = "text") -> bytes:
    """Returns a text as UTF-8.

    Raises:
        InvalidRequest: It is no text, or has half of a surrogate pair in it.
    """
    text = check_kind(field, value, str, allowed)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, text[error.start : error.end], "valid Unicode text") from None


def check_several(field: str, given: Iterable[T], allowed: str) -> Iterable[T]:
    """Returns ``given`` if it can be gone through, and is no text, which is a sequence of texts too.

    Raises:
        InvalidRequest: It is not.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(field, given, allowed)
    return given
