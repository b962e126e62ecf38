"""When to choose the next step: as late as the device allows, so that whoever comes until then is in it.

Knows no device and no job. It is told of steps as they are launched and as they end, and has the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

_SHORTEST_S = 0.006
"""Shorter steps are not waited for: a newcomer would gain little, and a late one cost all others more."""
_NUM_KNOWN = 4
"""The last few of a kind, without which nothing is foretold. The first two compile and capture."""
_LEAST_MARGIN_S = 0.002
_MOST_MARGIN_S = 0.02
_LATE_S = 0.001
_IN_TIME_S = _LATE_S / 500


class Pace:
    """Foretells when the step on the device ends.

    It is taken to last as long as the quickest of the last few of its kind: to choose the next step too early
    costs whoever comes then one step, and too late costs everyone. The margin before the end is learnt. Each
    time the device had to wait adds a millisecond to it, and each time it had not takes off a five-hundredth
    of that, so that it settles where one step in five hundred is late.

    Args:
        clock: Seconds from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._launched: deque[Hashable] = deque()  # kinds of the steps that have not ended
        self._began_s: float | None = None  # the first of them, where that is known
        self._took_s: dict[Hashable, deque[float]] = {}
        self._margin_s = _LEAST_MARGIN_S

    @property
    def spare_s(self) -> float:
        """Seconds until the next step must be chosen; 0.0 where nothing is known that speaks for waiting."""
        ends_s = self._foretold_end_s()
        return 0.0 if ends_s is None else max(0.0, ends_s - self._margin_s - self._clock())

    def launched(self, kind: Hashable, *, is_late: bool) -> None:
        """Notes that a step was launched.

        Args:
            kind: What it shares with steps that take as long; None is like no other.
            is_late: Whether the one before it had ended; when is not known then. Where that end was waited
                for, the margin was too small or the step was quicker than foretold, and its kind is learnt
                anew; but not where this one is of no known kind, since its launch takes longer.
        """
        if self._foretold_end_s() is not None and self._is_known(kind):
            change_s = _LATE_S if is_late else -_IN_TIME_S
            self._margin_s = min(max(_LEAST_MARGIN_S, self._margin_s + change_s), _MOST_MARGIN_S)
            if is_late:
                del self._took_s[self._launched[0]]
        if is_late:
            self._began_s = None
        self._launched.append(kind)

    def ended(self) -> None:
        """Notes that the step launched first has ended; with it the next one begins, if there is one."""
        now_s = self._clock()
        kind = self._launched.popleft()
        if self._began_s is not None and kind is not None:
            self._took_s.setdefault(kind, deque(maxlen=_NUM_KNOWN)).append(now_s - self._began_s)
        self._began_s = now_s if self._launched else None

    def _foretold_end_s(self) -> float | None:
        """When the step on the device ends, where that is known and worth waiting for."""
        if self._began_s is None or not self._is_known(self._launched[0]):
            return None
        takes_s = min(self._took_s[self._launched[0]])
        return self._began_s + takes_s if takes_s >= _SHORTEST_S else None

    def _is_known(self, kind: Hashable) -> bool:
        return len(self._took_s.get(kind, ())) == _NUM_KNOWN
