"""The command ``batch``: a file of requests in, a file of results out."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thinkstream_client.batch import BatchJob
from thinkstream_client.client import Client
from thinkstream_client.errors import ConfigError
from thinkstream_client.jsonl import answered_ids, read_lines, result_line

from . import options
from .output import notes, print_json


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(batch)


def batch(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests.", show_default=False)],
    target: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Results.", show_default=False)
    ],
    priority: options.Priority = "low",
    max_in_flight: Annotated[int, typer.Option("--in-flight", help="Jobs at one time.", min=1)] = 1024,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Runs a file of jobs. Run it again after an interruption: only what OUT lacks is submitted.

    Lines are OpenAI's (`custom_id, method, url, body`) or short (`id, prompt | messages, ...`); results are
    OpenAI's. A line that cannot be taken gets a result line with its error.

    Example: `thinkstream batch questions.jsonl -o answers.jsonl`
    """
    lines = _read(source)
    answered = _repair(target)
    items = [item for item in read_lines(lines) if item.custom_id not in answered]
    if answered:
        notes.print(f"{len(answered)} results are there already, {len(items)} are missing")
    with Client(url, namespace=namespace) as client:
        if items and not client.replicas():
            notes.print("no replica is alive: the jobs wait in the queue")
        # The same file under the same id finds the jobs of a former run, and takes up their results.
        digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        job = client.batch(
            items, id=f"batch-{digest}", tenant=tenant, priority=priority, max_in_flight=max_in_flight
        )
        started_s = time.monotonic()
        try:
            _run(job, len(items), target, quiet=as_json)
        except KeyboardInterrupt:
            notes.print("detached; jobs that were submitted run on, the same command takes up their results")
            raise
    progress = job.progress
    elapsed_s = time.monotonic() - started_s
    if as_json:
        counts = {"done": progress.done, "failed": progress.failed, "tokens": progress.tokens}
        print_json({**counts, "already_there": len(answered), "elapsed_s": round(elapsed_s, 3)})
    elif items:
        rate = progress.tokens / max(elapsed_s, 1e-9)
        notes.print(
            f"{progress.done} done, {progress.failed} failed, {progress.tokens} tokens in {elapsed_s:.1f} s"
            f" ({rate:.0f} tokens/s)"
        )
    if progress.failed:
        raise typer.Exit(3)


def _read(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8").split("\n")  # str.splitlines also splits inside JSON texts
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: {getattr(error, 'strerror', None) or error}") from error


def _repair(target: Path) -> set[str]:
    """Cuts a line that a crash left torn, and returns the ids whose results are there."""
    try:
        data = target.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            target.write_bytes(whole)
        return answered_ids(whole.decode("utf-8", "replace").split("\n"))
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror or error}") from error


def _run(job: BatchJob, num_items: int, target: Path, *, quiet: bool) -> None:
    columns = (
        TextColumn("jobs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started_s = time.monotonic()
    try:
        with target.open("a", encoding="utf-8") as out, Progress(*columns, disable=quiet) as bar:
            task = bar.add_task("", total=num_items, rate="")
            for result in job.results():
                out.write(result_line(result, created_s=int(time.time())) + "\n")
                out.flush()
                tokens_per_s = job.progress.tokens / max(time.monotonic() - started_s, 1e-9)
                bar.update(task, advance=1, rate=f"{tokens_per_s:.0f} tokens/s")
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror or error}") from error
