"""Commands about one job: submit, attach, cancel, inspect, jobs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from thinkstream_client.client import Client
from thinkstream_client.functions import JobInfo
from thinkstream_client.job import Job
from thinkstream_client.records import PRIORITIES

from . import options
from .output import console, describe, notes, print_json, print_stream, result_object

JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (submit, attach, cancel, inspect, jobs):
        app.command()(command)


def submit(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.", show_default=False)],
    raw: Annotated[bool, typer.Option("--raw", help="Go on from the text, without a chat template.")] = False,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    id: Annotated[
        str | None, typer.Option("--id", help="The job's id; else a new one.", show_default=False)
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Label to find it by; repeatable.")] = None,
    priority: options.Priority = "normal",
    deadline_s: Annotated[
        float | None, typer.Option("--deadline-s", help="Seconds it is wanted for.", show_default=False)
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and leave.")] = False,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Submits a job and prints its text as it comes. Ctrl-C detaches; the job runs on.

    Example: `thinkstream submit "What is the capital of France?" --temperature 0`
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    chat = [*([("system", system)] if system else []), ("user", text)]
    with Client(url, namespace=namespace) as client:
        job = client.submit(
            prompt=text if raw else None,
            messages=None if raw else chat,
            id=id,
            tenant=tenant,
            priority=priority,
            deadline_s=deadline_s,
            tags=tag or (),
            stream=not as_json,
            **options.sampling_fields(temperature, top_p, top_k, max_tokens, stop, seed),
        )
        if detach:
            print_json({"id": job.id, "tenant": job.tenant}) if as_json else print(job.id)
            return
        if not client.replicas():
            notes.print("no replica is alive: the job waits in the queue")
        _follow(job, as_json=as_json)


def attach(
    job_id: JobId,
    from_index: Annotated[int, typer.Option("--from", help="Tokens to skip.", min=0)] = 0,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Follows a job from its first token on, or from any other. Ctrl-C detaches; the job runs on.

    Example: `thinkstream attach 4f0c21d7a9be5e6f01c3a2d4 --from 8`
    """
    with Client(url, namespace=namespace) as client:
        _follow(client.job(job_id, tenant=tenant), as_json=as_json, from_index=from_index)


def cancel(
    job_id: JobId,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Cancels a job at once. One that has ended stays as it is.

    Example: `thinkstream cancel 4f0c21d7a9be5e6f01c3a2d4`
    """
    with Client(url, namespace=namespace) as client:
        status = client.job(job_id, tenant=tenant).cancel()
    print_json({"id": job_id, "status": status}) if as_json else print(status)


def inspect(
    job_id: JobId,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Shows all that the queue knows about a job: attempts, owner, times, resolved sampling.

    Example: `thinkstream inspect 4f0c21d7a9be5e6f01c3a2d4`
    """
    with Client(url, namespace=namespace) as client:
        info = client.job(job_id, tenant=tenant).info()
    if as_json:
        print_json(_info_object(info))
        return
    table = Table(show_header=False, box=None)
    for name, value in _info_object(info).items():
        if value not in (None, "", [], ()):
            table.add_row(name, str(value))
    console.print(table)


def jobs(
    tag: Annotated[
        str | None, typer.Option("--tag", help="Only jobs with this label.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Jobs at most.", min=1)] = 20,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Lists a tenant's jobs, newest first.

    Example: `thinkstream jobs --tag nightly`
    """
    with Client(url, namespace=namespace) as client:
        found = client.jobs(tag=tag, tenant=tenant, limit=limit)
    if as_json:
        print_json(found)
        return
    table = Table("id", "status", "reason", "class", "tokens", "submitted", "tags")
    for job in found:
        submitted = time.strftime("%H:%M:%S", time.localtime(job.submitted_ms / 1000))
        num_tokens = "" if job.n is None else str(job.n)
        priority, tags = PRIORITIES[job.priority], " ".join(job.tags)
        table.add_row(job.ref.job_id, job.status, job.reason or "", priority, num_tokens, submitted, tags)
    console.print(table)


def _follow(job: Job, *, as_json: bool, from_index: int = 0) -> None:
    try:
        if as_json:
            print_json(result_object(job.result()))
        else:
            notes.print(describe(print_stream(job.stream(from_index))))
    except KeyboardInterrupt:
        notes.print(f"\ndetached; the job runs on: thinkstream attach {job.id} --tenant {job.tenant}")
        raise


def _info_object(info: JobInfo) -> dict[str, Any]:
    shown = dataclasses.asdict(info)
    ref, payload, note = shown.pop("ref"), shown.pop("payload"), shown.pop("note")
    sampling = json.loads(note) if note else None
    num_bytes = None if payload is None else len(payload)
    return {"id": ref[1], "tenant": ref[0], **shown, "payload_bytes": num_bytes, "resolved": sampling}
