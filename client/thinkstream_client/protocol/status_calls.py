"""Calls that tell how the service stands: tenants, sessions, backlog, events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from thinkstream_client.keys import Keys
from thinkstream_client.records import JobRef, SessionId

from .call import Call, function_call
from .packing import amount

TENANT_FIELDS = ("weight", "jobs", "bytes", "running", "rate")
"""What may be set of a tenant, as the functions call it."""
LOAD_FIELDS = ("waiting", "free_blocks", "num_blocks", "tokens")
"""What of a session's info is its load: sequences without blocks, blocks, tokens since its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantInfo:
    """A tenant's settings and what it uses, in one partition. A cap of 0 is none.

    The last three are counted up and down by the calls themselves and never counted anew. Where others wrote
    over a counter, it is too low until the tenant has no job, or too high until an operator removes it.

    Attributes:
        tenant: Its name.
        weight: Its share of the service beside other tenants.
        max_jobs: Cap of its waiting jobs.
        max_bytes: Cap of their payloads together.
        max_running: Cap of its running jobs.
        max_tokens_per_s: Cap of its tokens, of prompts and results, on average.
        num_queued: Jobs waiting now.
        num_queued_bytes: Bytes of their payloads.
        num_running: Jobs running now.
    """

    tenant: str
    weight: float = 1.0
    max_jobs: int = 0
    max_bytes: int = 0
    max_running: int = 0
    max_tokens_per_s: int = 0
    num_queued: int = 0
    num_queued_bytes: int = 0
    num_running: int = 0

    def joined(self, same: TenantInfo) -> TenantInfo:
        """The tenant as two partitions tell of it: its settings are one, what it uses adds up."""
        return replace(
            self,
            num_queued=self.num_queued + same.num_queued,
            num_queued_bytes=self.num_queued_bytes + same.num_queued_bytes,
            num_running=self.num_running + same.num_running,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as Redis knows it.

    Attributes:
        session: Its name.
        replica: The replica whose incarnation it is.
        slots: Jobs it can own at once.
        owned: Jobs it owns.
        draining: It takes no more.
        lease_left_ms: Until it may be reaped; below 0 it may be already.
        since_ms: Server time of its hello.
        alone: The suspect that it steps alone.
        info: What it told about itself.
    """

    session: SessionId
    replica: str
    slots: int
    owned: int
    draining: bool
    lease_left_ms: int
    since_ms: int
    alone: JobRef | None
    info: dict[str, str]

    @property
    def free_slots(self) -> int:
        """Jobs that it can take now."""
        return 0 if self.draining or self.lease_left_ms < 0 else max(0, self.slots - self.owned)

    def joined(self, same: SessionInfo) -> SessionInfo:
        """The session as two partitions tell of it: its slots are one, its jobs add up, each lease counts."""
        return replace(
            self,
            owned=self.owned + same.owned,
            draining=self.draining or same.draining,
            lease_left_ms=min(self.lease_left_ms, same.lease_left_ms),
            alone=self.alone or same.alone,
        )

    @property
    def load(self) -> dict[str, int]:
        """What the replica has in hand, of ``LOAD_FIELDS`` those that it tells."""
        return {name: int(self.info[name]) for name in LOAD_FIELDS if _is_count(self.info.get(name, ""))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBacklog:
    """What waits in one class: jobs that ran before, and jobs per tenant (of the first thousand)."""

    again: int
    by_tenant: dict[str, int]

    @property
    def num_jobs(self) -> int:
        """All jobs that wait in the class."""
        return self.again + sum(self.by_tenant.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits and runs in one partition.

    Attributes:
        classes: By priority.
        running: Jobs that are owned.
        retrying: Jobs that wait to be tried again.
        dead: Dead letters.
    """

    classes: dict[int, ClassBacklog]
    running: int
    retrying: int
    dead: int

    @property
    def num_jobs(self) -> int:
        """All jobs that could be claimed."""
        return sum(one.num_jobs for one in self.classes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened: ``submit``, ``claim``, ``finish``, ``retry``, ``release``, ``reap``,
    ``repair``, ``revive`` to a job, ``batch`` to a batch that has ended, whose id then stands in the place of
    the job's, ``hello``, ``bye``, ``gone`` to a session.
    """  # noqa: D205

    entry_id: str
    kind: str
    ref: JobRef | None
    status: str
    session: SessionId | None


def tenants(keys: Keys, partition: int) -> Call[list[TenantInfo]]:
    """Lists the tenants that have settings or jobs."""

    def parse(reply: Any) -> list[TenantInfo]:
        settings, usage = (_by_tenant(pairs) for pairs in reply)
        return [_tenant(name, settings, usage) for name in sorted(settings.keys() | usage.keys())]

    return Call(function_call("tenants", keys.prefix(partition)), parse)


def sessions(keys: Keys, partition: int) -> Call[list[SessionInfo]]:
    """Lists the sessions that were not reaped, those whose lease is over among them."""

    def parse(reply: Any) -> list[SessionInfo]:
        return [_session(*row) for row in reply]

    return Call(function_call("sessions", keys.prefix(partition)), parse)


def backlog(keys: Keys, partition: int) -> Call[Backlog]:
    """Counts what waits and runs."""

    def parse(reply: Any) -> Backlog:
        rows, running, retrying, dead = reply
        classes: dict[int, ClassBacklog] = {}
        for priority, tenant, num_jobs in rows:
            if tenant:
                classes[priority].by_tenant[tenant.decode(errors="replace")] = num_jobs
            else:
                classes[priority] = ClassBacklog(again=num_jobs, by_tenant={})
        return Backlog(classes=classes, running=running, retrying=retrying, dead=int(dead))

    return Call(function_call("backlog", keys.prefix(partition)), parse)


def read_events(
    keys: Keys, partition: int, after: str, *, block_ms: int | None = None, count: int = 1000
) -> Call[list[Event]]:
    """Reads what happened after an entry id, ``$`` for what comes from now on.

    Args:
        keys: Names of the keys.
        partition: The partition.
        after: The id.
        block_ms: How long to wait for the first event, at least 1; None does not wait.
        count: Events at most.
    """
    block: tuple[str | int, ...] = () if block_ms is None else ("BLOCK", max(1, block_ms))

    def parse(reply: Any) -> list[Event]:
        return [
            _event(entry_id, _pairs(fields)) for _, entries in reply or () for entry_id, fields in entries
        ]

    return Call(("XREAD", "COUNT", count, *block, "STREAMS", keys.events(partition), after), parse)


def _pairs(flat: Any) -> dict[str, bytes]:
    return {flat[i].decode(errors="replace"): flat[i + 1] for i in range(0, len(flat), 2)}


def _by_tenant(flat: Any) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, value in _pairs(flat).items():
        tenant, _, field = name.partition(":")
        found.setdefault(tenant, {})[field] = amount(value)
    return found


def _tenant(
    name: str, settings: dict[str, dict[str, float]], usage: dict[str, dict[str, float]]
) -> TenantInfo:
    weight, *caps = (settings.get(name, {}).get(field, 0.0) for field in TENANT_FIELDS)
    used = usage.get(name, {})
    return TenantInfo(
        tenant=name,
        weight=weight or 1.0,
        max_jobs=int(caps[0]),
        max_bytes=int(caps[1]),
        max_running=int(caps[2]),
        max_tokens_per_s=int(caps[3]),
        num_queued=int(used.get("queued", 0)),
        num_queued_bytes=int(used.get("bytes", 0)),
        num_running=int(used.get("running", 0)),
    )


def _session(name: bytes, lease_left_ms: int, owned: int, flat: Any) -> SessionInfo:
    found = {field: value.decode(errors="replace") for field, value in _pairs(flat).items()}
    tenant, _, job_id = found.get("alone", "").partition(":")
    return SessionInfo(
        session=SessionId(name.decode(errors="replace")),
        replica=found.get("replica", ""),
        slots=_count(found.get("slots", "")),
        owned=owned,
        draining=found.get("draining") == "1",
        lease_left_ms=lease_left_ms,
        since_ms=_count(found.get("since", "")),
        alone=JobRef(tenant, job_id) if job_id else None,
        info={f.removeprefix("info:"): v for f, v in found.items() if f.startswith("info:")},
    )


def _count(text: str) -> int:
    """A number as sessions write it; 0 for what others wrote, so that such a session is given nothing."""
    return int(text) if _is_count(text) else 0


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 16


def _event(entry_id: bytes, found: dict[str, bytes]) -> Event:
    ref, session = _ref(found), found.get("session", b"").decode(errors="replace")
    return Event(
        entry_id=entry_id.decode(),
        kind=found.get("kind", b"").decode(errors="replace"),
        ref=ref if ref.job_id else None,
        status=found.get("status", b"").decode(errors="replace"),
        session=SessionId(session) if session else None,
    )


def _ref(found: dict[str, bytes]) -> JobRef:
    return JobRef(
        found.get("tenant", b"").decode(errors="replace"), found.get("job", b"").decode(errors="replace")
    )
