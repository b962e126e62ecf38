"""Commands that show jobs: inspect, jobs."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from thinkstream_client.client import Client
from thinkstream_client.core.history import JobHistory
from thinkstream_client.outcome import Finish, Timings, Usage
from thinkstream_client.protocol.functions import JobInfo
from thinkstream_client.protocol.read_calls import MAX_LISTED
from thinkstream_client.records import PRIORITIES

from . import options
from .objects import job_object, summary_object
from .output import duration, local_time, print_json, print_note, print_table


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (inspect, jobs):
        app.command()(command)


def inspect(
    job_id: options.JobId,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Shows all that the queue knows about a job: attempts, who ran it, times, usage, resolved sampling.

    Example: `thinkstream inspect 4f0c21d7a9be5e6f01c3a2d4`
    """
    with closing(Client(url, namespace=namespace)) as client:
        job = client.job(job_id, tenant=tenant)
        info, history = job.info(), job.history()
    if as_json:
        print_json(job_object(info, history))
        return
    table = Table(show_header=False, box=None)
    for name, value in _rows(info, history).items():
        if value:
            table.add_row(name, escape(value))  # what a worker says is no markup
    print_table(table)


def jobs(
    tag: Annotated[
        str | None, typer.Option("--tag", help="Only jobs with this label.", show_default=False)
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", help="Jobs at most.", metavar="INT", parser=options.integer(1, MAX_LISTED)),
    ] = 20,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Lists a tenant's jobs, newest first.

    Example: `thinkstream jobs --tag nightly`
    """
    with closing(Client(url, namespace=namespace)) as client:
        found = client.jobs(tag=tag, tenant=tenant, limit=limit)
    if as_json:
        print_json([summary_object(job) for job in found])
        return
    if not found:
        print_note(f"tenant {tenant} has no jobs{f' with the tag {tag}' if tag else ''}")
        return
    table = Table("id", "status", "reason", "priority", "tokens", "submitted", "took", "tags", box=None)
    for job in found:
        table.add_row(
            job.ref.job_id,
            job.status,
            job.reason or "",
            PRIORITIES[job.priority],
            "" if job.n is None else str(job.n),
            local_time(job.submitted_ms),
            _between(job.submitted_ms, job.finished_ms),
            " ".join(job.tags),
        )
    print_table(table)


def _rows(info: JobInfo, history: JobHistory) -> dict[str, str]:
    """Returns what ``inspect`` shows, by name; what is empty is left out."""
    shown = job_object(info, history)
    rows = {name: str(shown[name]) for name in ("id", "tenant", "status")}
    rows["reason"] = info.reason or ""
    rows["error"] = f"{info.failure.code}: {info.failure.message}" if info.failure else ""
    rows |= {"priority": PRIORITIES[info.priority], "tags": " ".join(info.tags), "tokens": str(info.n)}
    rows["submitted"] = local_time(info.submitted_ms)
    rows["waited"] = _between(info.submitted_ms, info.claimed_ms)
    rows["ran"] = _between(info.claimed_ms, info.finished_ms)
    rows["finished"] = local_time(info.finished_ms) if info.finished_ms else ""
    rows["deadline"] = local_time(info.deadline_at_ms) if info.deadline_at_ms else ""
    rows["result kept"] = duration(info.result_ttl_ms)
    rows |= {"claims": str(info.claims), "attempts": f"{info.attempts} failed", "owner": info.owner or ""}
    for one in history.tenures:
        whence = f", from token {one.num_tokens}" if one.num_tokens else ""
        rows[f"claim {one.number}"] = f"{local_time(one.claimed_ms)} {one.session}{whence}"
    rows |= _rows_of_end(history.finish)
    rows["suspect"] = "its last owner died" if info.suspect else ""
    rows["request"] = f"{len(info.payload)} bytes" if info.payload else ""
    given = {name: value for name, value in shown["sampling"].items() if value not in (None, [], {})}
    rows["sampling"] = ", ".join(f"{name} {value}" for name, value in given.items())
    return rows


def _rows_of_end(finish: Finish | None) -> dict[str, str]:
    if finish is None:
        return {}
    usage, timings = finish.usage, finish.timings
    prompt = f"{usage.prompt_tokens} prompt ({usage.cached_tokens} cached)"
    times = {
        "queued": timings.queued_ms,
        "prefill": timings.prefill_ms,
        "first token": timings.first_token_ms,
        "decode": timings.decode_ms,
    }
    told = f"{prompt}, {usage.completion_tokens} result"
    timed = ", ".join(f"{name} {duration(ms)}" for name, ms in times.items())
    # Where nobody but the queue was there at the end, as of a cancelled job, neither is known.
    return {"usage": told if usage != Usage() else "", "timings": timed if timings != Timings() else ""}


def _between(begin_ms: int | None, end_ms: int | None) -> str:
    return "" if begin_ms is None or end_ms is None else duration(max(0, end_ms - begin_ms))
