"""How long the Publisher waits before it sends the same again, and when no waiting mends what is wrong.

Counts what Redis has refused in a row. Knows no Redis, no thread and no clock: it says how long, others wait.
"""

from __future__ import annotations

from thinkstream_client.errors import Fenced, QueueFull, ServiceUnavailable, ThinkstreamError

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
MAX_REFUSED_CALLS = 60
"""Calls refused in a row, about a minute of them, after which the replica ends: no waiting mends that."""
MAX_REFUSED_SESSIONS = 8
"""New sessions in a row that Redis may refuse before the replica ends: it would refuse the next one too."""


class Patience:
    """Refusals in a row, and the pauses that follow from them."""

    def __init__(self) -> None:
        self._backoff_s = 0.0
        self._num_refused_calls = 0
        self._num_refused_sessions = 0  # fenced so often since the last beat that was answered

    @property
    def is_tried(self) -> bool:
        """Whether something failed since all was sent."""
        return self._backoff_s > 0.0

    def all_sent(self) -> None:
        """Notes that nothing was left unsent."""
        self._backoff_s, self._num_refused_calls = 0.0, 0

    def beat_answered(self) -> None:
        """Notes that Redis knows the session."""
        self._num_refused_sessions = 0

    def before_retry(self, error: ThinkstreamError) -> float:
        """Seconds until the same is sent again.

        Args:
            error: Why it was not taken. A lost connection and a lack of memory pass; of others so many in a
                row are not waited for.

        Raises:
            ThinkstreamError: ``error`` itself, which no waiting mends.
        """
        if not isinstance(error, ServiceUnavailable | QueueFull):
            self._num_refused_calls += 1
            if self._num_refused_calls > MAX_REFUSED_CALLS:
                raise error
        self._backoff_s = min(MAX_BACKOFF_S, 2 * self._backoff_s or FIRST_BACKOFF_S)
        return self._backoff_s

    def before_session(self, error: Fenced) -> float:
        """Seconds until the next session is opened: none the first time, later each time it is refused too.

        Raises:
            Fenced: Redis has refused too many.
        """
        num_refused = self._num_refused_sessions
        if num_refused == MAX_REFUSED_SESSIONS:
            raise Fenced(f"Redis has refused {num_refused} new sessions in a row") from error
        self._num_refused_sessions += 1
        return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (num_refused - 1)) if num_refused else 0.0
