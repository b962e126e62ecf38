"""Signals that end a service, as a question asked where the answer does no harm.

An exception out of a signal handler may come up in the middle of foreign code, which swallows it or
crashes (Ray does both). So the handler only notes that a signal came.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Notes SIGINT, SIGTERM and SIGHUP within a ``with`` block of the main thread.

    However often they come, nothing is interrupted: what is begun inside, a clean-up too, comes to its end.
    """

    def __init__(self) -> None:
        self._received = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Returns if no signal has come.

        Raises:
            KeyboardInterrupt: One has.
        """
        if self._received:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
