"""Whether the decode loop is alive: it stamps, the Publisher looks how old the stamp is."""

from __future__ import annotations

import time


class Pulse:
    """The time of the decode loop's last turn.

    A lease is renewed only while the stamp is young: a process whose loop hangs must lose its jobs even
    though its other threads are well.
    """

    def __init__(self) -> None:
        self._alive_at = time.monotonic()

    def stamp(self) -> None:
        """Says that the loop turns."""
        self._alive_at = time.monotonic()

    def is_younger_than(self, age_ms: float) -> bool:
        """Whether the last turn is less than ``age_ms`` ago."""
        return (time.monotonic() - self._alive_at) * 1_000 < age_ms
