"""Commands about the service as a whole: status, tenant set, drop and list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from thinkstream_client.client import Client
from thinkstream_client.core.service import MAX_CAP
from thinkstream_client.errors import RequestError
from thinkstream_client.protocol.functions import SessionInfo, TenantInfo

from . import options
from .objects import queues_object, replica_object, tenant_object
from .output import console, counted, print_json, print_note, print_table

_CAP = options.integer(0, MAX_CAP)
TenantName = Annotated[str, typer.Argument(help="Its name.", show_default=False)]
_LOAD = ("waiting", "free blocks", "tokens")
"""Columns of a replica's load."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(status)
    tenant = typer.Typer(
        help="Weights and caps of tenants.\n\nExample: `thinkstream tenant set research --weight 3`",
        short_help="Weights and caps of tenants.",
        no_args_is_help=True,
    )
    tenant.command("set")(tenant_set)
    tenant.command("drop")(tenant_drop)
    tenant.command("list")(tenant_list)
    app.add_typer(tenant, name="tenant")


def status(
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Shows queues, tenants, replicas and load. Ends with 1 where no replica is alive.

    Of a replica: `running` are the jobs it has in its `slots`, `waiting` those of them that wait for memory,
    `free blocks` what is left of it for keys and values, `tokens` what it has made since its start; one that
    is `draining` takes no more jobs.
    Of a priority: `of them again` are the waiting jobs that ran before.
    Of a tenant: `weight` is its share beside others, `caps` what it may have at most.

    Example: `thinkstream status --json`
    """
    with closing(Client(url, namespace=namespace)) as client:
        settings, found = client.settings, client.status()
    server, queues = found.server, queues_object(found.backlog)
    if as_json:
        about = {"name": server.name, "version": server.version, "append_only": server.append_only}
        print_json(
            {
                "url": settings.masked_url,
                "namespace": settings.namespace,
                "server": about,
                "replicas": [replica_object(one) for one in found.replicas],
                "queues": queues,
                "tenants": [tenant_object(one) for one in found.tenants],
            }
        )
    else:
        where = f"{settings.masked_url}, namespace {settings.namespace}"
        console.print(f"{server.name} {server.version} at {where}", soft_wrap=True, markup=False)
        _print_replicas(found.replicas)
        _print_queues(queues)
        _print_tenants(found.tenants)
    if not found.replicas:
        raise typer.Exit(1)


def tenant_set(
    tenant: TenantName,
    weight: Annotated[
        float | None, typer.Option("--weight", help="Its share beside others.", show_default=False)
    ] = None,
    max_jobs: Annotated[
        int | None,
        typer.Option(
            "--max-jobs", help="Waiting jobs; 0 is no cap.", metavar="INT", parser=_CAP, show_default=False
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes", help="Bytes of waiting jobs.", metavar="INT", parser=_CAP, show_default=False
        ),
    ] = None,
    max_running: Annotated[
        int | None,
        typer.Option("--max-running", help="Running jobs.", metavar="INT", parser=_CAP, show_default=False),
    ] = None,
    max_tokens_per_s: Annotated[
        int | None,
        typer.Option(
            "--max-tokens-per-s",
            help="On average; up to 10 s of it at once, and jobs that run go on.",
            metavar="INT",
            parser=_CAP,
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Sets a tenant's weight and caps and shows them; what is not named stays as it is.

    Example: `thinkstream tenant set research --weight 3 --max-running 64`
    """
    with closing(Client(url, namespace=namespace)) as client:
        now = client.tenant_set(
            tenant,
            weight=weight,
            max_jobs=max_jobs,
            max_bytes=max_bytes,
            max_running=max_running,
            max_tokens_per_s=max_tokens_per_s,
        )
    _print_tenant(now, as_json)


def tenant_drop(
    tenant: TenantName,
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Forgets a tenant's weight and caps; its jobs stay.

    Example: `thinkstream tenant drop research`
    """
    with closing(Client(url, namespace=namespace)) as client:
        former = next((one for one in client.status().tenants if one.tenant == tenant), None)
        now = client.tenant_drop(tenant)
    # Of a tenant without settings the queue knows its jobs alone.
    if former is None or (former == now and (now.num_queued or now.num_running)):
        raise RequestError(f"tenant {tenant}: it had no settings")
    if as_json:
        print_json(tenant_object(now))
    else:
        print_note(f"{tenant}: forgotten; weight 1 and no caps from now on")


def tenant_list(
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Lists the tenants that have settings, or waiting or running jobs, with weights and caps.

    Example: `thinkstream tenant list --json`
    """
    with closing(Client(url, namespace=namespace)) as client:
        found = client.status().tenants
    if as_json:
        print_json([tenant_object(one) for one in found])
    elif found:
        print_table(_tenant_table(found))
    else:
        print_note("no tenant has settings or jobs")


def _print_replicas(sessions: Sequence[SessionInfo]) -> None:
    if not sessions:
        console.print("no replica is alive: jobs wait in the queue", style="red", soft_wrap=True)
        return
    names = sorted({name for one in sessions for name in one.info.keys() - one.load.keys()})
    loads = any(one.load for one in sessions)
    table = Table(
        "replica", "running", "slots", "state", *(_LOAD if loads else ()), *map(escape, names), box=None
    )
    for one in sessions:
        state = "draining" if one.draining else "alive"
        info = (one.info.get(name, "") for name in names)
        load = _load(one.load) if loads else ()
        cells = (one.replica, str(one.owned), str(one.slots), state, *load, *info)
        table.add_row(*(escape(cell) for cell in cells))
    console.print()
    print_table(table)


def _load(load: Mapping[str, int]) -> tuple[str, ...]:
    """The cells under ``_LOAD``."""
    blocks = (
        f"{load['free_blocks']} of {load['num_blocks']}"
        if load.keys() >= {"free_blocks", "num_blocks"}
        else ""
    )
    return (str(load.get("waiting", "")), blocks, str(load.get("tokens", "")))


def _print_queues(queues: dict[str, Any]) -> None:
    table = Table("priority", "waiting", "of them again", box=None)
    for name, found in queues["classes"].items():
        table.add_row(name, str(found["waiting"]), str(found["again"]))
    console.print()
    print_table(table)
    retrying, dead = queues["retrying"], counted(queues["dead_letters"], "dead letter")
    console.print(f"\n{queues['running']} running, {retrying} waiting for a retry, {dead}")


def _print_tenant(tenant: TenantInfo, as_json: bool) -> None:
    if as_json:
        print_json(tenant_object(tenant))
    else:
        caps = _caps(tenant) or "no caps"
        console.print(f"{tenant.tenant}: weight {tenant.weight:g}, {caps}", soft_wrap=True)


def _print_tenants(tenants: Sequence[TenantInfo]) -> None:
    if tenants:
        console.print()
        print_table(_tenant_table(tenants))


def _tenant_table(tenants: Sequence[TenantInfo]) -> Table:
    table = Table("tenant", "weight", "waiting", "running", "caps", box=None)
    for one in tenants:
        table.add_row(one.tenant, f"{one.weight:g}", str(one.num_queued), str(one.num_running), _caps(one))
    return table


def _caps(tenant: TenantInfo) -> str:
    caps = {
        "waiting": tenant.max_jobs,
        "bytes": tenant.max_bytes,
        "running": tenant.max_running,
        "tokens/s": tenant.max_tokens_per_s,
    }
    return ", ".join(f"at most {cap} {name}" for name, cap in caps.items() if cap)
