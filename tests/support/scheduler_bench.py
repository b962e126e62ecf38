"""A scheduler on a real server, with replicas that are names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from thinkstream_client.keys import Keys
from thinkstream_client.outcome import Finish, FinishReason, JobStatus
from thinkstream_client.protocol import functions, wire
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed, FinishRow
from thinkstream_client.records import JobRef, Request, SessionId
from thinkstream_client.settings import RedisSettings
from thinkstream_scheduler.config import SchedulerConfig
from thinkstream_scheduler.loop import Scheduler
from thinkstream_scheduler.redis_queue import RedisQueue

KEYS = Keys("ts")
NONCE = "nonce"


@dataclass
class FakePool:
    """Replicas that are names: kept, with sessions, handed jobs and killed, and nothing else."""

    reported: dict[SessionId, str] = field(default_factory=dict[SessionId, str])
    kept: list[str] = field(default_factory=list[str])
    started: list[str] = field(default_factory=list[str])
    assigned: list[tuple[str, list[Claimed]]] = field(default_factory=list[tuple[str, list[Claimed]]])
    dead: list[str] = field(default_factory=list[str])

    def keep(self, name: str) -> None:
        if name not in self.kept:
            self.kept.append(name)
            self.started.append(name)

    def sessions(self) -> dict[SessionId, str]:
        return dict(self.reported)

    def assign(self, name: str, jobs: Sequence[Claimed]) -> None:
        self.assigned.append((name, list(jobs)))

    def deaths(self) -> list[str]:
        dead, self.dead = self.dead, []
        for session in [session for session, name in self.reported.items() if name in dead]:
            del self.reported[session]
        return dead

    def kill(self, name: str) -> None:
        self.kept.remove(name)
        self.dead.append(name)

    def jobs_of(self, name: str) -> list[str]:
        return [job.ref.job_id for replica, jobs in self.assigned if replica == name for job in jobs]


class Bench:
    """A scheduler on a real server, with what a test does to both."""

    def __init__(self, url: str) -> None:
        self.settings = RedisSettings(url=url)
        self.connection = Connection(self.settings)
        self.pool = FakePool()
        self.now_s = 0.0

    def scheduler(self, *, num_replicas: int = 0, pool: FakePool | None = None) -> Scheduler:
        config = SchedulerConfig(redis=self.settings, num_replicas=num_replicas, wake_ms=20)
        return Scheduler(config, RedisQueue(self.settings), pool or self.pool, lambda: self.now_s)

    def hello(
        self,
        replica: str,
        *,
        slots: int = 4,
        lease_ms: int = 60_000,
        life: str = "1",
        pool: FakePool | None = None,
    ) -> SessionId:
        session = SessionId(f"{replica}.{life}")
        call = functions.hello(
            KEYS, 0, session, NONCE, replica=replica, slots=slots, lease_ms=lease_ms, info={}
        )
        self.connection.run(call)
        (pool or self.pool).reported[session] = replica
        return session

    def submit(self, *job_ids: str, tenant: str = "a") -> None:
        for job_id in job_ids:
            self.connection.run(functions.submit(KEYS, JobRef(tenant, job_id), Request(prompt="x")))

    def finish(self, session: SessionId, jobs: Sequence[Claimed]) -> None:
        done = Finish(reason=FinishReason.STOP, num_tokens=0)
        rows = [
            FinishRow(
                ref=job.ref,
                expected_len=job.mk,
                last_entry=None,
                terminal=wire.encode_terminal(done),
                reason=done.reason,
                num_tokens=0,
                cost=1,
            )
            for job in jobs
        ]
        self.connection.run(functions.finish(KEYS, 0, session, NONCE, rows))

    def status(self, job_id: str, tenant: str = "a") -> JobStatus:
        return self.connection.run(functions.job_info(KEYS, JobRef(tenant, job_id))).status
