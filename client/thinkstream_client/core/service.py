"""The service as a whole: its replicas, queues and tenants, put together from all partitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from thinkstream_client.checks import check_integer, check_number
from thinkstream_client.errors import InvalidRequest, ThinkstreamError
from thinkstream_client.keys import Keys, check_name
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.functions import Backlog, ClassBacklog, SessionInfo, TenantInfo
from thinkstream_client.protocol.server_check import ServerInfo

from .effects import Operation, ask_many

T = TypeVar("T")

MAX_CAP = 10**13
"""A cap of more is none: the functions count no further."""


class TenantSettings(TypedDict, total=False):
    """What may be set of a tenant; fields as in ``TenantInfo``, 0 lifts a cap, None leaves it."""

    weight: float | None
    max_jobs: int | None
    max_bytes: int | None
    max_running: int | None
    max_tokens_per_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """How the service stands.

    Attributes:
        server: What holds the queue.
        replicas: Those that are alive, by name.
        backlog: What waits and runs.
        tenants: Those that have settings or jobs, by name.
    """

    server: ServerInfo
    replicas: tuple[SessionInfo, ...]
    backlog: Backlog
    tenants: tuple[TenantInfo, ...]


def ask_all(calls: Sequence[Call[T]], patience_s: float) -> Operation[list[T]]:
    """Runs idempotent calls in one pipeline.

    Raises:
        ThinkstreamError: The first refusal among them.
    """
    replies = yield from ask_many(calls, patience_s)
    for reply in replies:
        if isinstance(reply, ThinkstreamError):
            raise reply
    return [reply for reply in replies if not isinstance(reply, ThinkstreamError)]


def living_replicas(keys: Keys, patience_s: float) -> Operation[tuple[SessionInfo, ...]]:
    """Returns the sessions whose lease holds, by name of their replica."""
    parts = yield from ask_all([functions.sessions(keys, p) for p in keys.partitions], patience_s)
    found: dict[str, SessionInfo] = {}
    for one in (one for part in parts for one in part if one.lease_left_ms > 0):
        found[one.session] = found[one.session].joined(one) if one.session in found else one
    return tuple(sorted(found.values(), key=lambda one: (one.replica, one.session)))


def service_status(keys: Keys, server: ServerInfo, patience_s: float) -> Operation[ServiceStatus]:
    """Returns how the service stands."""
    replicas = yield from living_replicas(keys, patience_s)
    backlogs = yield from ask_all([functions.backlog(keys, p) for p in keys.partitions], patience_s)
    tenants = yield from _tenants(keys, patience_s)
    return ServiceStatus(server=server, replicas=replicas, backlog=_whole(backlogs), tenants=tenants)


def tenant_set(keys: Keys, tenant: str, settings: TenantSettings, patience_s: float) -> Operation[TenantInfo]:
    """Sets what is given of a tenant's share and caps, and returns how it stands now.

    Raises:
        InvalidRequest: The name or a value is outside its range.
    """
    _check_settings(tenant, settings)
    calls = [functions.tenant_set(keys, p, tenant, **settings) for p in keys.partitions]
    return (yield from _changed(keys, tenant, calls, patience_s))


def tenant_drop(keys: Keys, tenant: str, patience_s: float) -> Operation[TenantInfo]:
    """Forgets a tenant's share and caps, and returns how it stands now.

    Raises:
        InvalidRequest: The name is none.
    """
    calls = [functions.tenant_drop(keys, p, tenant) for p in keys.partitions]
    return (yield from _changed(keys, tenant, calls, patience_s))


def _changed(
    keys: Keys, tenant: str, calls: Sequence[Call[None]], patience_s: float
) -> Operation[TenantInfo]:
    yield from ask_all(calls, patience_s)
    found = yield from _tenants(keys, patience_s)
    return next((one for one in found if one.tenant == tenant), TenantInfo(tenant=tenant))


def _check_settings(tenant: str, settings: TenantSettings) -> None:
    check_name("tenant", tenant)
    for name, value in settings.items():
        if name not in TenantSettings.__annotations__:
            raise InvalidRequest(name, value, "no such setting")
        if name == "weight" and value is not None:
            check_number(name, value, 0.001, 1000)
        elif value is not None:
            check_integer(name, value, 0, MAX_CAP)


def _tenants(keys: Keys, patience_s: float) -> Operation[tuple[TenantInfo, ...]]:
    parts = yield from ask_all([functions.tenants(keys, p) for p in keys.partitions], patience_s)
    found: dict[str, TenantInfo] = {}
    for one in (one for part in parts for one in part):
        found[one.tenant] = found[one.tenant].joined(one) if one.tenant in found else one
    return tuple(found[name] for name in sorted(found))


def _whole(parts: Iterable[Backlog]) -> Backlog:
    classes: dict[int, ClassBacklog] = {}
    running = retrying = dead = 0
    for part in parts:
        running, retrying, dead = running + part.running, retrying + part.retrying, dead + part.dead
        for priority, waiting in part.classes.items():
            before = classes.get(priority, ClassBacklog(again=0, by_tenant={}))
            by_tenant = dict(before.by_tenant)
            for tenant, num_jobs in waiting.by_tenant.items():
                by_tenant[tenant] = by_tenant.get(tenant, 0) + num_jobs
            classes[priority] = ClassBacklog(again=before.again + waiting.again, by_tenant=by_tenant)
    return Backlog(classes=classes, running=running, retrying=retrying, dead=dead)
