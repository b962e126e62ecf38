"""The replicas as Ray actors: adopted by name, started, handed jobs, drained, mourned.

Actors are detached and named, in a Ray namespace of the service's own, so that any scheduler finds
them and none takes them along when it dies. They are never restarted by Ray, because Ray reports a death
that it means to repair a hundred times later; the loop starts a successor instead.
"""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.exceptions

from thinkstream_client.errors import ConfigError, ServiceUnavailable, ThinkstreamError, WeightsError
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import SessionId
from thinkstream_workers.actor import ReplicaActor
from thinkstream_workers.config import ReplicaConfig

from .resources import ReplicaResources

_POLL_S = 0.2
_CONTROL_TIMEOUT_S = 10.0
_LAST_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w+): (.*)$")

# Ray's types do not reach through decorated classes and their results: these names carry none.
_ray: Any = ray
_ReplicaActor: Any = ReplicaActor
ActorProxy = Any


@dataclass(slots=True, eq=False)
class _Held:
    """A replica's actor, and the session that it reported last."""

    actor: ActorProxy
    session: SessionId | None = None


class RayPool:
    """Replicas of one kind. The calling process is connected to Ray.

    Args:
        replica: What each replica is told; its name is filled in.
        resources: What each replica gets.
        namespace: Where the actors have their names.
    """

    def __init__(self, replica: ReplicaConfig, resources: ReplicaResources, namespace: str) -> None:
        self._replica, self._resources, self._namespace = replica, resources, namespace
        self._held: dict[str, _Held] = {}
        self._dead: list[str] = []
        # Filled from Ray's threads.
        self._reports: queue.SimpleQueue[tuple[str, _Held, Future[SessionId]]] = queue.SimpleQueue()

    def keep(self, name: str) -> None:
        """Adopts the living actor of this name, or starts one; nothing if it is held already."""
        if name not in self._held:
            self._hold(name, self._adopt_or_start(name))

    def adopt(self, name: str) -> ActorProxy | None:
        """The living actor of this name, from now on held; None if there is none."""
        if name not in self._held:
            try:
                actor = _ray.get_actor(name, namespace=self._namespace)
            except ValueError:
                return None
            self._hold(name, actor)
        return self._held[name].actor

    def assign(self, name: str, jobs: Sequence[Claimed]) -> None:
        """Hands claimed jobs to an actor in one call and does not wait for it.

        A call that is lost does no harm: the replica learns at its next beat what it owns, and of a dead
        one the jobs are reaped.
        """
        actor = self.adopt(name)
        if actor is not None:
            actor.assign.remote(list(jobs))

    def sessions(self) -> Mapping[SessionId, str]:
        """The session that each replica had reported when `deaths` was called last, with its name."""
        return {held.session: name for name, held in self._held.items() if held.session is not None}

    def deaths(self) -> list[str]:
        """The replicas whose actor died since the last call."""
        self._hear()
        dead, self._dead = self._dead, []
        return dead

    def wait_until_ready(self, timeout_s: float, checkpoint: Callable[[], None]) -> dict[str, int]:
        """Returns the process id of every replica that is held, once all of them take jobs.

        Args:
            timeout_s: How long they may load.
            checkpoint: Called all the while; what it raises ends the wait.

        Raises:
            ConfigError: A replica cannot use its model or its namespace.
            ServiceUnavailable: A replica died of something else, or they took too long.
        """
        until_s = time.monotonic() + timeout_s
        loading: dict[Any, str] = {held.actor.ready.remote(): name for name, held in self._held.items()}
        pids: dict[str, int] = {}
        while loading:
            checkpoint()
            if time.monotonic() > until_s:
                names = ", ".join(loading.values())
                raise ServiceUnavailable(f"{names} did not get ready in {timeout_s:.0f} s")
            for ready in _ray.wait(list(loading), timeout=_POLL_S)[0]:
                name = loading.pop(ready)
                try:
                    pids[name] = _ray.get(ready).pid
                except ray.exceptions.RayError as error:
                    raise explained(error, name) from error
        return pids

    def drain(self, timeout_s: float) -> None:
        """Drains every replica that is held; returns when they are done or dead.

        Args:
            timeout_s: How long their running jobs may go on.
        """
        calls: list[Any] = [held.actor.drain.remote(timeout_s) for held in self._held.values()]
        if calls:
            _ray.wait(calls, num_returns=len(calls), timeout=timeout_s + _CONTROL_TIMEOUT_S)

    def kill(self) -> None:
        """Ends every actor that is held, at once."""
        for held in self._held.values():
            _ray.kill(held.actor, no_restart=True)
        self._held.clear()

    def _adopt_or_start(self, name: str) -> ActorProxy:
        # Atomic in Ray: of several schedulers one starts it and the others adopt.
        return _ReplicaActor.options(
            name=name,
            namespace=self._namespace,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=0,
            num_cpus=self._resources.num_cpus,
            num_gpus=self._resources.num_gpus,
        ).remote(replace(self._replica, name=name))

    def _hold(self, name: str, actor: ActorProxy) -> None:
        self._held[name] = _Held(actor)
        self._listen(name, self._held[name])

    def _listen(self, name: str, held: _Held) -> None:
        """Has the next session reported, or the death: the call fails within milliseconds of it."""
        future: Future[SessionId] = held.actor.next_session.remote(held.session).future()
        future.add_done_callback(partial(self._take, name, held))

    def _take(self, name: str, held: _Held, future: Future[SessionId]) -> None:
        self._reports.put((name, held, future))

    def _hear(self) -> None:
        while not self._reports.empty():
            name, held, future = self._reports.get()
            if self._held.get(name) is not held:
                continue
            if future.exception() is None:
                held.session = future.result()
                self._listen(name, held)
            else:
                del self._held[name]
                self._dead.append(name)


def explained(error: Exception, who: str) -> ThinkstreamError:
    """What an actor died of, as an error of ours: Ray gives the traceback of a constructor as text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        found = _LAST_ERROR.match(line)
        if found is None:
            continue
        if found[1] in (ConfigError.code, WeightsError.code):
            return ConfigError(found[2])
        return ServiceUnavailable(f"{who} did not start: {found[1]}: {found[2]}")
    return ServiceUnavailable(f"{who} did not start: {lines[0] if lines else type(error).__name__}")
