"""The scheduler: gives waiting jobs to free slots, and keeps replicas and queue alive.

Its state is what Redis and its replicas say, looked at anew each turn, so any number of schedulers may
serve one namespace and one that starts anew knows everything at once. It gives jobs to its own replicas
alone and buries nobody else's: those of other services have schedulers of their own. What needs no
replica, the leases that end and the sweeps, it does for all. It knows replicas through a small `Pool` and
nothing of Ray.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from thinkstream_client.errors import ServiceUnavailable
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import SessionId

from .config import SchedulerConfig
from .policy import spread, turns
from .redis_queue import RedisQueue, View
from .roster import Roster

logger = logging.getLogger(__name__)

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.05, 1.0


class Pool(Protocol):
    """The replicas' processes. No method waits for a replica."""

    def keep(self, name: str) -> None:
        """Adopts the living replica of this name, or starts one; nothing if it is held already."""
        ...

    def assign(self, name: str, jobs: Sequence[Claimed]) -> None:
        """Hands claimed jobs to a replica. May be lost with it: the queue knows who owns what."""
        ...

    def sessions(self) -> Mapping[SessionId, str]:
        """The sessions that the replicas had reported when `deaths` was called last, with their names."""
        ...

    def deaths(self) -> list[str]:
        """The replicas whose process ended since the last call, each once per death."""
        ...


class Scheduler:
    """Serves one namespace until told to stop.

    A turn is: bury the dead, look, give out, wait for an event. Redis being away costs a pause, and
    what Redis refuses concerns one call.

    Args:
        config: The settings.
        queue: The namespace's queue.
        pool: The replicas.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        queue: RedisQueue,
        pool: Pool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._queue, self._pool, self._clock = config, queue, pool, clock
        self._roster = Roster(
            config.replica_names,
            restart_min_s=config.restart_min_ms / 1e3,
            restart_max_s=config.restart_max_ms / 1e3,
        )
        self._view = View()
        self._own: Mapping[SessionId, str] = {}
        self._stopping = threading.Event()
        self._next_upkeep_s = self._next_report_s = 0.0
        self._num_turns = 0
        self._unburied: set[SessionId] = set()
        self._done: Counter[str] = Counter()

    def run(self) -> None:
        """Turns until `stop`; outlives outages of Redis and its own mistakes."""
        pause_s = _BACKOFF_MIN_S
        while not self._stopping.is_set():
            try:
                self.turn()
                self._queue.wait(self._config.wake_ms)
            except ServiceUnavailable as error:
                if pause_s == _BACKOFF_MIN_S:
                    logger.warning("Redis is away, waiting for it: %s", error)
            except Exception:
                # A turn is made anew from what Redis says: going on is safe, ending is not.
                logger.exception("a turn failed")
            else:
                if pause_s > _BACKOFF_MIN_S:
                    logger.warning("Redis is back")
                pause_s = _BACKOFF_MIN_S
                continue
            self._stopping.wait(pause_s)
            pause_s = min(_BACKOFF_MAX_S, pause_s * 2)

    def stop(self) -> None:
        """Claims nothing more; `run` returns after the turn that it is in."""
        self._stopping.set()

    def turn(self) -> None:
        """Does all that is to do now, without waiting for anything."""
        now_s = self._clock()
        self._bury(now_s)
        if now_s >= self._next_upkeep_s:
            self._next_upkeep_s = now_s + self._config.sweep_ms / 1e3
            self._keep_up(now_s)
        self._view = self._queue.look()
        for name in self._own.values():
            self._roster.note_ready(name)
        if any(live.lease_left_ms <= 0 for live in self._view.sessions):
            self._done["reaped"] += self._queue.reap()
            self._view = self._queue.look()
        self._give_out()
        if now_s >= self._next_report_s:
            self._next_report_s = now_s + self._config.report_ms / 1e3
            self._report()

    def _bury(self, now_s: float) -> None:
        """Takes the jobs of replicas that Ray reports dead, without waiting for their lease to end."""
        # Only sessions that were reported before the notice was taken: a later one is the successor's.
        reported = self._pool.sessions()
        dead = self._pool.deaths()
        self._unburied.update(session for session, name in reported.items() if name in dead)
        for name in dead:
            was_ready = name in reported.values()
            self._roster.note_death(name, now_s, was_ready=was_ready)
            logger.warning("replica %s died%s", name, "" if was_ready else " before it was ready")
        self._own = self._pool.sessions()
        for session in sorted(self._unburied):
            self._done["reaped"] += self._queue.reap(session)
            self._unburied.discard(session)
        if dead:
            self._hold(now_s)

    def _keep_up(self, now_s: float) -> None:
        self._hold(now_s)
        self._done["reaped"] += self._queue.reap()
        swept = self._queue.sweep()
        self._done.update(retried=swept.retried, expired=swept.expired, repaired=swept.repaired)

    def _hold(self, now_s: float) -> None:
        for name in self._roster.due(now_s):
            self._pool.keep(name)

    def _give_out(self) -> None:
        free = {live.session: live.free_slots for live in self._view.sessions if live.session in self._own}
        self._num_turns += 1
        num_free = sum(max(0, slots) for slots in free.values())
        for partition, num_waiting in turns(self._view.waiting, num_free, self._num_turns):
            for session, num_jobs in spread(free, num_waiting).items():
                jobs = self._queue.claim(partition, session, min(num_jobs, self._config.max_claim))
                if jobs:
                    self._pool.assign(self._own[session], jobs)
                    free[session] -= len(jobs)
                    self._done["assigned"] += len(jobs)

    def _report(self) -> None:
        sessions = self._view.sessions
        logger.info(
            "load: %d sessions, %d of %d slots taken, %d jobs wait; since the last line %s",
            len(sessions),
            sum(live.owned for live in sessions),
            sum(live.slots for live in sessions),
            self._view.num_waiting,
            ", ".join(f"{count} {what}" for what, count in sorted(self._done.items()) if count) or "nothing",
        )
        self._done.clear()
