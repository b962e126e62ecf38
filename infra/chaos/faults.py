"""Which fault comes when, and how each is done."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import redis
from infra.own_processes import REPLICA, SCHEDULER

from thinkstream_client.errors import ThinkstreamError

from .hang import Hang
from .options import ChaosOptions
from .stage import Stage

logger = logging.getLogger(__name__)

ON_REPLICAS = frozenset({"kill", "stop", "hang", "raylet"})
"""Faults after which somebody else must take jobs over."""
_REDIS_AWAY_S = (0.2, 3.0)
_PRIMARY_AWAY_S = (4.0, 15.0)  # long enough that another takes its place
_NODE_AWAY_S = 10.0
_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault as it was done.

    Attributes:
        kind: Which.
        at_s: When, on the machine's monotonic clock.
        pids: The processes that it hit; of a raylet, the replicas that die with it.
    """

    kind: str
    at_s: float
    pids: tuple[int, ...]


class Faults:
    """Does what is due, when it is asked to.

    Args:
        options: The run.
        stage: What is broken.
        clock: Monotonic seconds.
    """

    def __init__(
        self, options: ChaosOptions, stage: Stage, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options, self._stage, self._clock = options, stage, clock
        self._rng = random.Random(f"faults {options.seed}")
        self._order = count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._repairs: list[tuple[float, int, Callable[[], None]]] = []
        self._hangs: list[Hang] = []
        self.done: list[Fault] = []
        now_s = clock()
        self._plan(now_s + options.light_s, self._light)
        if options.heavy_s:
            self._plan(now_s + options.heavy_s / 2, self._scheduler)
            self._plan(now_s + options.heavy_s, self._redis)
        if options.second_node:
            self._plan(now_s + options.raylet_s, self._raylet)

    def step(self) -> None:
        """Does the faults and repairs whose time has come."""
        self._run(self._repairs)
        self._run(self._due)

    def end(self) -> None:
        """Repairs at once what is still broken."""
        self._due.clear()
        while self._repairs:
            heapq.heappop(self._repairs)[2]()
        for hang in self._hangs:
            hang.let_go()

    def _run(self, actions: list[tuple[float, int, Callable[[], None]]]) -> None:
        while actions and actions[0][0] <= self._clock():
            # What a fault meets may be broken already, or die under its hands.
            with contextlib.suppress(ProcessLookupError, ThinkstreamError, redis.RedisError):
                heapq.heappop(actions)[2]()

    def _plan(self, at_s: float, fault: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), fault))

    def _repair(self, after_s: float, repair: Callable[[], None]) -> None:
        heapq.heappush(self._repairs, (self._clock() + after_s, next(self._order), repair))

    def _note(self, kind: str, *pids: int) -> None:
        logger.info("%s %s", kind, ", ".join(map(str, pids)))
        self.done.append(Fault(kind=kind, at_s=self._clock(), pids=pids))

    def _light(self) -> None:
        self._plan(self._clock() + self._options.light_s, self._light)
        mix = self._options.mix
        kind = self._rng.choices(list(mix), list(mix.values()))[0]
        outage_s = self._rng.uniform(0.5, 3.0) * self._options.lease_ms / 1000
        match kind:
            case "cut":
                self._cut()
            case "client":
                self._note("client", self._stage.kill_reader(self._rng.randrange(self._options.num_readers)))
            case _:
                self._hit_replica(kind, outage_s)

    def _hit_replica(self, kind: str, outage_s: float) -> None:
        replicas = self._stage.find(REPLICA)
        if not replicas:
            return
        pid = self._rng.choice(replicas)
        match kind:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "stop":
                os.kill(pid, signal.SIGSTOP)
                self._repair(outage_s, lambda: _go_on(pid))
            case _:
                hang = Hang(pid, outage_s)
                if not hang.begin():
                    return
                self._hangs.append(hang)
        self._note(kind, pid)

    def _cut(self) -> None:
        self._stage.cut_connection(self._rng)
        self._note("cut")

    def _scheduler(self) -> None:
        self._plan(self._clock() + self._options.heavy_s, self._scheduler)
        pids = self._stage.find(SCHEDULER)
        if pids:
            pid = self._rng.choice(pids)
            os.kill(pid, signal.SIGKILL)
            self._note("scheduler", pid)

    def _redis(self) -> None:
        pid = self._stage.kill_redis(self._rng)
        self._plan(self._clock() + (_AGAIN_S if pid is None else self._options.heavy_s), self._redis)
        if pid is None:
            return
        self._note("redis", pid)
        away_s = _REDIS_AWAY_S if self._options.topology == "standalone" else _PRIMARY_AWAY_S
        self._repair(self._rng.uniform(*away_s), self._stage.restart_redis)

    def _raylet(self) -> None:
        self._plan(self._clock() + self._options.raylet_s, self._raylet)
        pids = self._stage.kill_raylet()
        if pids is not None:
            self._note("raylet", *pids)
            self._repair(_NODE_AWAY_S, self._stage.start_second_node)


def _go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
