"""Everybody else: clients, a scheduler and other replicas, on a connection that nobody disturbs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import redis

from thinkstream_client.errors import Fenced, JobNotFound
from thinkstream_client.outcome import JobStatus
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import JobRef, Request, SamplingParams, SessionId
from thinkstream_client.settings import RedisSettings

from .audit import Snapshot, check, check_empty
from .worker import HandWorker, token_of, tokens_of

FAR_MS = 3_600_000


class World:
    """A namespace of one partition, emptied, and short words for what happens in it."""

    def __init__(self, url: str) -> None:
        self.settings = RedisSettings(url)
        self.keys = self.settings.keys
        self.connection = Connection(self.settings)
        self.raw: Any = redis.Redis.from_url(url)
        self.refs: dict[JobRef, int] = {}
        """Every job submitted, with the tokens that it is to have."""
        self._num_workers = 0

    def clear(self) -> None:
        """Empties the server, of all but the library."""
        self.raw.flushall()
        self.refs.clear()

    def close(self) -> None:
        self.connection.close()
        self.raw.close()

    def run(self, call: Any) -> Any:
        return self.connection.run(call)

    def submit(self, job_id: str, *, num_tokens: int = 4, grain: int = 1, tenant: str = "a") -> JobRef:
        ref = JobRef(tenant, job_id)
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        request = Request(prompt="a prompt", grain=grain, sampling=sampling)
        self.run(functions.submit(self.keys, ref, request, deadline_ms=FAR_MS))
        self.refs[ref] = num_tokens
        return ref

    def worker(self, *, slots: int = 8) -> HandWorker:
        """Another replica, whose session is known already."""
        self._num_workers += 1
        worker = HandWorker(self.settings, self.connection, f"other-{self._num_workers}", slots=slots)
        worker.session.open()
        return worker

    def claim(self, session: SessionId, k: int = 8) -> list[Claimed]:
        """The scheduler's claim; none where the session is gone."""
        try:
            return self.connection.run(functions.claim(self.keys, 0, session, k))
        except Fenced:
            return []

    def reap(self, session: SessionId | None = None) -> None:
        self.run(functions.reap(self.keys, 0, session))

    def cancel(self, refs: Iterable[JobRef]) -> None:
        """Cancels those of the jobs that are there."""
        for ref in refs:
            with contextlib.suppress(JobNotFound):
                self.run(functions.cancel(self.keys, ref))

    def make_due(self, kind: str) -> None:
        """Lets the time come for every ``retry`` or ``deadline``, and sweeps."""
        names = [name for name in self.raw.zrange(self.keys.due(0), 0, -1) if name.startswith(kind.encode())]
        if kind == "deadline":
            for name in names:
                self.raw.hset(f"{self.keys.prefix(0)}job:{name.decode().partition(':')[2]}", "deadline", 1)
        if names:
            self.raw.zadd(self.keys.due(0), dict.fromkeys(names, 1))
        self.run(functions.sweep(self.keys, 0))

    def bring_to_an_end(self) -> None:
        """Has a new replica do whatever is left, which must not take for ever."""
        worker = self.worker()
        for _ in range(90):
            if all(self.status(ref).is_terminal for ref in self.refs):
                break
            self.make_due("retry")
            worker.assign(self.claim(worker.session.id))
            worker.turn()
        worker.close()

    def status(self, ref: JobRef) -> JobStatus:
        return self.connection.run(functions.job_status(self.keys, ref))

    def token_ids(self, ref: JobRef) -> tuple[int, ...]:
        """What the job's stream holds now."""
        snapshot = self.look()
        return snapshot.jobs[ref].token_ids if ref in snapshot.jobs else ()

    def look(self) -> Snapshot:
        return Snapshot(self.raw, self.keys)

    def check(self) -> Snapshot:
        """Asserts that everything is whole now."""
        snapshot = self.look()
        check(snapshot, token_of)
        return snapshot

    def check_end(self) -> None:
        """Asserts that every job has ended, the done ones with all their tokens, and that nothing is left."""
        snapshot = self.check()
        for ref, num_tokens in self.refs.items():
            job = snapshot.jobs[ref]
            if job.status == "done":
                assert job.token_ids == tokens_of(ref.job_id, num_tokens), ref
        check_empty(snapshot)
