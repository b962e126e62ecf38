"""Which replicas ought to run, and when one that died may be started again.

Knows no Ray and no clock: the loop tells it what happened and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Post:
    """One replica's place."""

    num_failures: int = 0
    start_at_s: float = 0.0


class Roster:
    """The replicas to hold alive, by name.

    A replica that had served is replaced at once. One that died before it was ready waits, twice as long
    each time, so that a broken installation does not spend the machine on loading.

    Args:
        names: The replicas.
        restart_min_s: First wait.
        restart_max_s: Longest wait.
    """

    def __init__(self, names: Sequence[str], *, restart_min_s: float, restart_max_s: float) -> None:
        self._posts = {name: _Post() for name in names}
        self._restart_min_s, self._restart_max_s = restart_min_s, restart_max_s

    def due(self, now_s: float) -> list[str]:
        """Replicas that ought to run now."""
        return [name for name, post in self._posts.items() if post.start_at_s <= now_s]

    def note_ready(self, name: str) -> None:
        """A replica has a session: its former failures are forgotten."""
        if name in self._posts:
            self._posts[name].num_failures = 0

    def note_death(self, name: str, now_s: float, *, was_ready: bool) -> None:
        """A replica died.

        Args:
            name: The replica; names of others' replicas are ignored.
            now_s: Time on a monotonic clock.
            was_ready: Whether it had a session.
        """
        post = self._posts.get(name)
        if post is None:
            return
        if was_ready:
            post.num_failures, post.start_at_s = 0, now_s
            return
        wait_s = min(self._restart_max_s, self._restart_min_s * 2.0**post.num_failures)
        post.num_failures += 1
        post.start_at_s = now_s + wait_s
