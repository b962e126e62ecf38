"""The command ``batch``: a file of requests in, a file of results out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from thinkstream_client.client import Client
from thinkstream_client.core.batch_options import MAX_IN_FLIGHT
from thinkstream_client.core.compose import BatchItem
from thinkstream_client.errors import ConfigError
from thinkstream_client.files.jsonl import read_lines, result_line

from . import options
from .batch_run import BatchRun
from .output import counted, duration, notes, print_json, print_note
from .presence import no_replica
from .result_file import ResultFile

Source = Annotated[
    Path, typer.Argument(metavar="IN.jsonl", help="Requests; - reads them from stdin.", show_default=False)
]
Target = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Results.", show_default=False)
]
InFlight = Annotated[
    int,
    typer.Option(
        "--in-flight", help="Jobs at one time.", metavar="INT", parser=options.integer(1, MAX_IN_FLIGHT)
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(batch)


def batch(
    source: Source,
    target: Target,
    tag: options.Tag = None,
    priority: options.Priority = "low",
    max_in_flight: InFlight = 1024,
    as_json: options.Json = False,
    tenant: options.Tenant = "default",
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Runs a file of jobs. Run it again after an interruption: only what OUT lacks is submitted.

    Lines are OpenAI's (`custom_id, method, url, body`) or short (`id, prompt | messages, ...`); results are
    OpenAI's. `messages` go through the model's chat template, as what `submit` asks does; `prompt` is raw
    text to go on from. Ends with 3 where OUT holds an error.

    A line that cannot be taken gets a result line with its error, and is tried again by the next run. Other
    lines are known by their ids alone: an edited prompt under an old id keeps its old answer.

    Example: `thinkstream batch questions.jsonl -o answers.jsonl`
    """
    lines = _read(source, target)
    with closing(Client(url, namespace=namespace)) as client:
        told = no_replica(client)
        start = partial(
            client.batch, tenant=tenant, priority=priority, tags=tag or (), max_in_flight=max_in_flight
        )
        run = BatchRun(start, lines)
        with ResultFile(target) as out:
            items = _missing(lines, out)
            out.forget_refusals({item.custom_id for item in items})
            if out.refused and not as_json:
                rows = counted(len(out.refused), "refusal")
                print_note(f"{rows} in {target} of lines that are gone: take them out")
            if items and told:
                print_note(f"{told}: the jobs wait in the queue")
            _write_results(run, items, out, is_shown=not as_json)
    if as_json:
        counts = {"done": run.num_done, "failed": run.num_failed, "tokens": run.num_tokens}
        there = {"already_there": len(out.answered), "already_failed": len(out.failed)}
        print_json({**counts, **there, "elapsed_s": round(run.elapsed_s, 3)})
    elif items:
        _print_summary(run, target)
    if run.num_failed or out.failed or out.refused:
        raise typer.Exit(3)


def _print_summary(run: BatchRun, target: Path) -> None:
    for result in run.first_failures:
        where, told = f"line {result.item.number}", str(result.error)
        print_note(told if told.startswith(where) else f"{where}: {told}")
    if run.num_failed > len(run.first_failures):
        print_note(f"the rest in {target}")
    print_note(
        f"{run.num_done} done, {run.num_failed} failed, {run.num_tokens} tokens in"
        f" {duration(run.elapsed_s * 1000)} ({run.tokens_per_s:.0f} tokens/s)"
    )


def _missing(lines: Sequence[str], out: ResultFile) -> list[BatchItem]:
    items = [item for item in read_lines(lines) if item.custom_id not in out.answered]
    if out.answered:
        errors = f" ({counted(len(out.failed), 'error')} among them)" if out.failed else ""
        again = sum(item.custom_id in out.refused for item in items)
        told = f", {again} of them refused before" if again else ""
        are = "is" if len(out.answered) == 1 else "are"
        there = f"{counted(len(out.answered), 'result')} {are} there already{errors}"
        print_note(f"{there}, {len(items)} missing{told}")
    return items


def _write_results(run: BatchRun, items: Sequence[BatchItem], out: ResultFile, *, is_shown: bool) -> None:
    eta = (TextColumn("ETA"), TimeRemainingColumn())
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("jobs"), _Rate(run), *eta)
    is_shown = is_shown and notes.is_terminal
    try:
        with Progress(*columns, console=notes, disable=not is_shown) as bar:
            task = bar.add_task("", total=len(items))
            for result in run.results(items):
                out.append(result_line(result, created_s=int(time.time())))
                bar.advance(task)
    except KeyboardInterrupt:
        print_note("detached; what was submitted runs on, and the same command takes up its results")
        raise


class _Rate(ProgressColumn):
    """Tokens per second and failures, as they are when the bar is drawn."""

    def __init__(self, run: BatchRun) -> None:
        super().__init__()
        self._run = run

    def render(self, task: Task) -> Text:
        failed = f", {self._run.num_failed} failed" if self._run.num_failed else ""
        return Text(f"{self._run.tokens_per_s:.0f} tokens/s{failed}")


def _read(source: Path, target: Path) -> list[str]:
    try:
        is_stdin = source == Path("-")
        data = sys.stdin.buffer.read() if is_stdin else source.read_bytes()
        if not is_stdin and target.exists() and source.samefile(target):
            raise ConfigError(f"{target}: the results would go into the requests; name another file")
        # Lines end with \n alone: Unicode has other line breaks, and JSON allows them inside a text.
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}: line {number} is not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from error
