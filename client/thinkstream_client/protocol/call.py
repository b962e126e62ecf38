"""One Redis command and how to read its reply. Knows no connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from thinkstream_client.errors import ThinkstreamError

T_co = TypeVar("T_co", covariant=True)


def _as_it_is(error: ThinkstreamError) -> ThinkstreamError:
    return error


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """A command to be sent by a ``Connection`` or an ``AsyncConnection``.

    Attributes:
        args: The command and its arguments.
        parse: Reads the reply, which comes in the shapes of RESP2 with strings as bytes. It raises errors of
            our own tree where the reply is a refusal.
        route: A key whose server it goes to, where the arguments name none.
        refused: What to raise for an error of the server: another, where the call can tell more of it.
    """

    args: tuple[str | bytes | int, ...]
    parse: Callable[[Any], T_co]
    route: str = ""
    refused: Callable[[ThinkstreamError], ThinkstreamError] = _as_it_is

    @property
    def key(self) -> str | None:
        """The key that says which server of a Cluster it goes to; None for what concerns each of them."""
        if self.route:
            return self.route
        match self.args[0]:
            case "FUNCTION" | "INFO" | "WAITAOF":
                return None
            case "FCALL" | "FCALL_RO":
                place = 3 if self.args[2] else None
            case "XREAD":
                place = self.args.index("STREAMS") + 1
            case _:
                place = 1
        return None if place is None or len(self.args) <= place else _text(self.args[place])


def _text(key: str | bytes | int) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def function_call(name: str, key: str, *args: str | bytes | int) -> tuple[str | bytes | int, ...]:
    """The command that calls function ``ts1_<name>``; ``key`` routes it and names the partition."""
    return ("FCALL", f"ts1_{name}", 1, key, *args)
