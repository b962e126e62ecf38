"""Who sends what to Redis, one round trip after the other, and a place to stop before and after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection


class CallSites:
    """Watches all connections but those of the test's own.

    Args:
        monkeypatch: Undoes the watching.
        unwatched: Connections of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *unwatched: Connection) -> None:
        self.names: list[str] = []
        """What was sent since the last ``arm``."""
        self.on_every: Callable[[], None] | None = None
        """Called before each round trip: how the rest of the world moves on."""
        self._stop_at: tuple[int, str] | None = None
        self._act: Callable[[], None] | None = None
        send = Connection._send  # pyright: ignore[reportPrivateUsage]

        def watched_send(connection: Connection, calls: Sequence[Call[Any]]) -> list[Any]:
            if connection in unwatched:
                return send(connection, calls)
            self.names.append("+".join(dict.fromkeys(_name(call) for call in calls)))
            if self.on_every is not None:
                self.on_every()
            self._pass("before")
            replies = send(connection, calls)
            self._pass("after")
            return replies

        monkeypatch.setattr(Connection, "_send", watched_send)

    def arm(self, place: int | None = None, when: str = "", act: Callable[[], None] | None = None) -> None:
        """Starts counting anew; ``act`` is called once, before or after round trip number ``place``."""
        self.names.clear()
        self._stop_at, self._act = (None if place is None else (place, when)), act

    @property
    def has_acted(self) -> bool:
        """Whether the round trip came that ``act`` waited for."""
        return self._act is None

    def _pass(self, when: str) -> None:
        if self._stop_at == (len(self.names) - 1, when) and self._act is not None:
            act, self._act = self._act, None
            act()


def _name(call: Call[Any]) -> str:
    return str(call.args[1] if str(call.args[0]).startswith("FCALL") else call.args[0])
