"""Commands about the service as a whole: status, tenant set."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from thinkstream_client import functions
from thinkstream_client.connection import Connection
from thinkstream_client.discovery import find_service
from thinkstream_client.functions import Backlog, SessionInfo, TenantInfo
from thinkstream_client.keys import Keys
from thinkstream_client.records import PRIORITIES
from thinkstream_client.server_check import server_check

from . import options
from .output import console, print_json


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(status)
    tenant = typer.Typer(help="Weights and caps of tenants.", no_args_is_help=True)
    tenant.command("set")(tenant_set)
    app.add_typer(tenant, name="tenant")


def status(
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Shows queues, tenants, replicas and load. Ends with 1 where no replica is alive.

    Example: `thinkstream status --json`
    """
    settings = find_service(url, namespace)
    connection, keys = Connection(settings), settings.keys
    try:
        server = connection.run(server_check())
        sessions = _alive(connection, keys)
        backlogs = [connection.run(functions.backlog(keys, p)) for p in keys.partitions]
        tenants = [one for p in keys.partitions for one in connection.run(functions.tenants(keys, p))]
    finally:
        connection.close()
    if as_json:
        print_json({"server": server, "replicas": sessions, "queues": backlogs, "tenants": tenants})
    else:
        console.print(f"{server.name} {server.version} at {settings.masked_url}", highlight=False)
        _print_replicas(sessions)
        _print_queues(backlogs)
        _print_tenants(tenants)
    if not sessions:
        raise typer.Exit(1)


def tenant_set(
    tenant: Annotated[str, typer.Argument(help="Its name.", show_default=False)],
    weight: Annotated[
        float | None, typer.Option("--weight", help="Its share beside others.", show_default=False)
    ] = None,
    max_jobs: Annotated[
        int | None, typer.Option("--max-jobs", help="Waiting jobs; 0 is no cap.", show_default=False)
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", help="Bytes of waiting jobs.", show_default=False)
    ] = None,
    max_running: Annotated[
        int | None, typer.Option("--max-running", help="Running jobs.", show_default=False)
    ] = None,
    max_tokens_per_s: Annotated[
        int | None, typer.Option("--max-tokens-per-s", help="On average.", show_default=False)
    ] = None,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Sets a tenant's weight and caps; what is not named stays as it is.

    Example: `thinkstream tenant set research --weight 3 --max-running 64`
    """
    settings = find_service(url, namespace)
    connection, keys = Connection(settings), settings.keys
    try:
        for p in keys.partitions:
            connection.run(
                functions.tenant_set(
                    keys,
                    p,
                    tenant,
                    weight=weight,
                    max_jobs=max_jobs,
                    max_bytes=max_bytes,
                    max_running=max_running,
                    max_tokens_per_s=max_tokens_per_s,
                )
            )
    finally:
        connection.close()


def _alive(connection: Connection, keys: Keys) -> list[SessionInfo]:
    found = {
        one.session: one
        for p in keys.partitions
        for one in connection.run(functions.sessions(keys, p))
        if one.lease_left_ms > 0
    }
    return sorted(found.values(), key=lambda one: one.replica)


def _print_replicas(sessions: list[SessionInfo]) -> None:
    if not sessions:
        console.print("no replica is alive: jobs wait in the queue", style="red")
        return
    table = Table("replica", "running", "slots", "state", *_info_names(sessions), title="replicas")
    for one in sessions:
        state = "draining" if one.draining else "alive"
        info = (one.info.get(name, "") for name in _info_names(sessions))
        table.add_row(one.replica, str(one.owned), str(one.slots), state, *info)
    console.print(table)


def _info_names(sessions: list[SessionInfo]) -> list[str]:
    return sorted({name for one in sessions for name in one.info})


def _print_queues(backlogs: list[Backlog]) -> None:
    table = Table("class", "waiting", "of them again", title="queues")
    for priority, name in enumerate(PRIORITIES):
        classes = [one.classes[priority] for one in backlogs if priority in one.classes]
        waiting, again = sum(one.num_jobs for one in classes), sum(one.again for one in classes)
        table.add_row(name, str(waiting), str(again))
    console.print(table)
    counts: dict[str, Any] = {
        "running": sum(one.running for one in backlogs),
        "waiting for a retry": sum(one.retrying for one in backlogs),
        "dead letters": sum(one.dead for one in backlogs),
    }
    console.print(", ".join(f"{number} {name}" for name, number in counts.items()), highlight=False)


def _print_tenants(tenants: list[TenantInfo]) -> None:
    if not tenants:
        return
    table = Table("tenant", "weight", "waiting", "running", "caps", title="tenants")
    for one in tenants:
        caps = {"jobs": one.max_jobs, "bytes": one.max_bytes, "running": one.max_running}
        caps["tokens/s"] = one.max_tokens_per_s
        shown = ", ".join(f"{name} {cap}" for name, cap in caps.items() if cap)
        table.add_row(one.tenant, f"{one.weight:g}", str(one.num_queued), str(one.num_running), shown)
    console.print(table)
