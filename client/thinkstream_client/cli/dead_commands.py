"""Commands about dead letters: list, show, retry, drop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from thinkstream_client.discovery import find_service
from thinkstream_client.keys import Keys
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import DeadLetter
from thinkstream_client.protocol.namespace import settled
from thinkstream_client.protocol.read_calls import MAX_LISTED

from . import options
from .objects import letter_object
from .output import console, local_time, print_json, print_note, print_table

LetterId = Annotated[str, typer.Argument(help="Its id, as `dead list` prints it.", show_default=False)]
LetterIds = Annotated[list[str], typer.Argument(help="Their ids, as `dead list` prints them.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    dead = typer.Typer(
        help="Jobs that failed for good, and what was no job.\n\nExample: `thinkstream dead list`",
        short_help="Jobs that failed for good: list, show, retry, drop.",
        no_args_is_help=True,
    )
    dead.command("list")(dead_list)
    dead.command("show")(dead_show)
    dead.command("retry")(dead_retry)
    dead.command("drop")(dead_drop)
    app.add_typer(dead, name="dead")


def dead_list(
    limit: Annotated[
        int,
        typer.Option(
            "--limit", help="At most so many.", metavar="INT", parser=options.integer(1, MAX_LISTED)
        ),
    ] = 100,
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Lists dead letters, newest first.

    Example: `thinkstream dead list --json`
    """
    with _service(url, namespace) as (connection, keys):
        found = [
            one
            for p in keys.partitions
            for one in connection.run(functions.dead_letters(keys, p, limit=limit))
        ]
    found = sorted(found, key=lambda one: -one.died_ms)[:limit]
    if as_json:
        print_json([letter_object(one) for one in found])
        return
    if not found:
        print_note("no dead letters")
        return
    table = Table("letter", "died", "tenant", "job", "reason", "attempts", box=None)
    for one in found:
        died = local_time(one.died_ms)
        cells = (one.id, died, one.ref.tenant, one.ref.job_id, one.reason, str(one.attempts))
        table.add_row(*(escape(cell) for cell in cells))
    print_table(table)


def dead_show(
    letter: LetterId,
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Shows a dead letter: what was asked, how often it was tried, the last error.

    Example: `thinkstream dead show 1764000000000-0`
    """
    with _service(url, namespace) as (connection, keys):
        found = connection.run(functions.dead_letter(keys, letter))
    shown = letter_object(found, with_request=True)
    if as_json:
        print_json(shown)
        return
    error = f"{found.failure.code}: {found.failure.message}" if found.failure else ""
    rows = {"letter": found.id, "tenant": found.ref.tenant, "job": found.ref.job_id}
    rows |= {"died": local_time(found.died_ms), "reason": found.reason, "error": error}
    rows |= {"attempts": str(found.attempts), "request": _request_line(found, shown["request"])}
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    print_table(table)


def dead_retry(
    letters: LetterIds,
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Puts the jobs of dead letters in line again: same id, attempts from zero, behind their tokens.

    Example: `thinkstream dead retry 1764000000000-0`
    """
    with _service(url, namespace) as (connection, keys):
        for letter in letters:
            ref = connection.run(functions.dead_retry(keys, letter))
            if as_json:
                print_json({"letter": letter, "id": ref.job_id, "tenant": ref.tenant})
            else:
                console.print(f"{letter}: job {ref.job_id} is in line again", soft_wrap=True, markup=False)


def dead_drop(
    letters: LetterIds,
    as_json: options.Json = False,
    url: options.Url = None,
    namespace: options.Namespace = None,
) -> None:
    """Removes dead letters. Their jobs stay failed.

    Example: `thinkstream dead drop 1764000000000-0`
    """
    with _service(url, namespace) as (connection, keys):
        for letter in letters:
            connection.run(functions.dead_drop(keys, letter))
            if as_json:
                print_json({"letter": letter})
            else:
                console.print(f"{letter}: dropped", soft_wrap=True, markup=False)


@contextmanager
def _service(url: str | None, namespace: str | None) -> Generator[tuple[Connection, Keys]]:
    settings = find_service(url, namespace)
    with closing(Connection(settings)) as connection:
        yield connection, settled(connection, settings).keys


def _request_line(letter: DeadLetter, request: object) -> str:
    if isinstance(request, dict):
        return f"{len(letter.payload)} bytes, shown by --json"
    return f"{len(letter.payload)} bytes that are no request" if letter.payload else ""
