"""Commands that run jobs: submit, attach, cancel."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Annotated

import typer

from thinkstream_client.client import Client
from thinkstream_client.core.compose import new_job_id
from thinkstream_client.errors import InvalidRequest, ThinkstreamError
from thinkstream_client.job import Job
from thinkstream_client.records import MAX_TOKENS, JobRef

from . import options
from .objects import result_object
from .output import describe, print_json, print_note, print_stream
from .presence import no_replica

NewId = Annotated[str | None, typer.Option("--id", help="The job's id; else a new one.", show_default=False)]
Prompt = Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.", show_default=False)]
Raw = Annotated[
    bool, typer.Option("--raw", metavar=options.FLAG, help="Go on from the text, without a chat template.")
]
Deadline = Annotated[
    float | None, typer.Option("--deadline-s", help="Seconds it is wanted for.", show_default=False)
]
Detach = Annotated[bool, typer.Option("--detach", "-d", metavar=options.FLAG, help="Print the id and leave.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (submit, attach, cancel):
        app.command()(command)


def submit(
    prompt: Prompt,
    raw: Raw = False,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    id: NewId = None,
    tag: options.Tag = None,
    priority: options.Priority = "normal",
    deadline_s: Deadline = None,
    detach: Detach = False,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Submits a job and prints its text as it comes. Ctrl-C detaches; the job runs on.

    Example: `thinkstream submit "What is the capital of France?" --temperature 0`
    """
    sampling = options.sampling_fields(temperature, top_p, top_k, max_tokens, stop, seed)
    text = _stdin(is_raw=raw) if prompt == "-" else prompt
    if not text:
        raise typer.BadParameter("the prompt is empty")
    ref = JobRef(tenant, new_job_id() if id is None else id)
    with closing(Client(url, namespace=namespace)) as client:
        how_to_attach = _how_to_attach(client, ref, url, namespace)
        with _telling_what_runs_on(how_to_attach):
            job = client.submit(
                text if raw else None,
                messages=None if raw else _chat(system, text),
                id=ref.job_id,
                tenant=tenant,
                priority=priority,
                deadline_s=deadline_s,
                tags=tag or (),
                stream=not as_json,
                **sampling,
            )
        if not detach:
            _follow(client, job, how_to_attach, as_json=as_json)
        elif as_json:
            print_json({"id": job.id, "tenant": job.tenant})
        else:
            print(job.id)


def attach(
    job_id: options.JobId,
    from_index: Annotated[
        int,
        typer.Option("--from", help="Tokens to skip.", metavar="INT", parser=options.integer(0, MAX_TOKENS)),
    ] = 0,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Follows a job from its first token on, or from any other. Ctrl-C detaches; the job runs on.

    Example: `thinkstream attach 4f0c21d7a9be5e6f01c3a2d4 --from 8`
    """
    with closing(Client(url, namespace=namespace)) as client:
        job = client.job(job_id, tenant=tenant)
        how_to_attach = _how_to_attach(client, JobRef(tenant, job_id), url, namespace)
        is_over = job.status().is_terminal
        _follow(client, job, how_to_attach, as_json=as_json, from_index=from_index, is_over=is_over)


def cancel(
    job_id: options.JobId,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Cancels a job at once. One that has ended stays as it is.

    Example: `thinkstream cancel 4f0c21d7a9be5e6f01c3a2d4`
    """
    with closing(Client(url, namespace=namespace)) as client:
        status = client.job(job_id, tenant=tenant).cancel()
    told = status if status == "cancelled" else f"it had ended before: {status}"
    print_json({"id": job_id, "status": status}) if as_json else print(told)


def _stdin(*, is_raw: bool) -> str:
    data = sys.stdin.buffer.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("prompt", data[error.start : error.start + 8], "UTF-8 text") from error
    return text if is_raw else text.removesuffix("\n")  # the line break that ends what `echo` writes


def _chat(system: str | None, text: str) -> list[tuple[str, str]]:
    return [*([("system", system)] if system else []), ("user", text)]


@contextmanager
def _telling_what_runs_on(how_to_attach: str) -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print_note(f"interrupted; if the job was taken, it runs on: {how_to_attach}")
        raise


def _follow(
    client: Client,
    job: Job,
    how_to_attach: str,
    *,
    as_json: bool,
    from_index: int = 0,
    is_over: bool = False,
) -> None:
    does = "runs on"
    try:
        if not is_over and (told := no_replica(client)):
            does = "waits in the queue"
            print_note(f"{told}: job {job.id} {does}")
        if as_json:
            _print_result(job)
        else:
            print_note(describe(print_stream(job.stream(from_index))))
    except KeyboardInterrupt:
        print_note(f"detached; the job {does}: {how_to_attach}")
        raise


def _how_to_attach(client: Client, ref: JobRef, url: str | None, namespace: str | None) -> str:
    """Returns the command that follows a job, where the options of this one apply; a password is masked."""
    command = ["thinkstream", "attach", ref.job_id]
    if ref.tenant != "default":
        command += ["--tenant", ref.tenant]
    if url:
        command += ["--url", client.settings.masked_url]
    if namespace is not None:
        command += ["--namespace", namespace]
    return shlex.join(command)


def _print_result(job: Job) -> None:
    ref = JobRef(job.tenant, job.id)
    try:
        print_json(result_object(ref, job.result()))
    except ThinkstreamError as error:
        if error.partial is not None:
            print_json(result_object(ref, error.partial, error))
        raise
