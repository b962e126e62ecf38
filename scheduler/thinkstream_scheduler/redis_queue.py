"""The queue as the scheduler sees it: who lives, what waits, and the calls that move jobs.

The loops over partitions are here. It decides nothing, and its methods raise ``ServiceUnavailable`` when
Redis cannot be reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from thinkstream_client.errors import Fenced, ThinkstreamError
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Backlog, Claimed, SessionInfo, Swept
from thinkstream_client.records import SessionId
from thinkstream_client.settings import RedisSettings

from .ears import Ears

T = TypeVar("T")

_MAX_SWEEPS = 16


@dataclass(frozen=True, slots=True)
class View:
    """What one look at the queue showed.

    Attributes:
        sessions: Every session, over all partitions.
        waiting: Jobs that could be claimed, by partition and class.
    """

    sessions: Sequence[SessionInfo] = ()
    waiting: Mapping[int, Sequence[int]] = field(default_factory=dict[int, Sequence[int]])

    @property
    def num_waiting(self) -> int:
        """All jobs that could be claimed."""
        return sum(sum(classes) for classes in self.waiting.values())


class RedisQueue:
    """One namespace, over one connection.

    Args:
        settings: The server and the namespace.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._keys = settings.keys
        self._connection = Connection(settings)
        self._seen = "$"
        self._ears = Ears(settings) if self._keys.num_partitions > 1 else None

    def look(self) -> View:
        """Reads who lives and what waits, over all partitions."""
        partitions = self._keys.partitions
        sessions: dict[SessionId, SessionInfo] = {}
        for found in self._run_all([functions.sessions(self._keys, p) for p in partitions]):
            for one in found:
                known = sessions.get(one.session)
                sessions[one.session] = one if known is None else known.joined(one)
        backlogs = self._run_all([functions.backlog(self._keys, p) for p in partitions])
        waiting = {p: _by_class(backlog) for p, backlog in zip(partitions, backlogs, strict=True)}
        return View(tuple(sessions.values()), waiting)

    def claim(self, partition: int, session: SessionId, num_jobs: int) -> list[Claimed]:
        """Takes up to ``num_jobs`` of the partition for a session; none if it is gone."""
        try:
            return self._connection.run(functions.claim(self._keys, partition, session, num_jobs))
        except Fenced:
            return []

    def reap(self, session: SessionId | None = None) -> int:
        """Puts in line again what a dead session owned.

        Args:
            session: One known to be dead; None takes those whose lease is over.

        Returns:
            Number of jobs.
        """
        return sum(self._run_all([functions.reap(self._keys, p, session) for p in self._keys.partitions]))

    def sweep(self) -> Swept:
        """Does what is due, in every partition, again and again while there is more, up to a bound."""
        done: list[Swept] = []
        partitions = list(self._keys.partitions)
        for _ in range(_MAX_SWEEPS):
            swept = self._run_all([functions.sweep(self._keys, p) for p in partitions])
            done += swept
            partitions = [p for p, one in zip(partitions, swept, strict=True) if one.more]
            if not partitions:
                break
        return Swept(
            retried=sum(one.retried for one in done),
            expired=sum(one.expired for one in done),
            repaired=sum(one.repaired for one in done),
            more=bool(partitions),
        )

    def wait(self, timeout_ms: int) -> None:
        """Returns at the next event, or after ``timeout_ms`` without one.

        Args:
            timeout_ms: Well below the connection's timeout for a reply, 5 s, so that a server that hangs is
                noticed here too.
        """
        if self._ears is not None:
            self._ears.wait(timeout_ms / 1000)
            return
        events = self._connection.run(functions.read_events(self._keys, 0, self._seen, block_ms=timeout_ms))
        if events:
            self._seen = events[-1].entry_id

    def close(self) -> None:
        """Closes the connections."""
        if self._ears is not None:
            self._ears.close()
        self._connection.close()

    def _run_all(self, calls: Sequence[Call[T]]) -> list[T]:
        results: list[T] = []
        for result in self._connection.run_many(calls):
            if isinstance(result, ThinkstreamError):
                raise result
            results.append(result)
        return results


def _by_class(backlog: Backlog) -> tuple[int, ...]:
    return tuple(backlog.classes[priority].num_jobs for priority in sorted(backlog.classes))
