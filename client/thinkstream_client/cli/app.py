"""Puts the commands together, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 the service cannot do it now, 2 the request or the installation is wrong, 3 the job
ended without a whole result, 130 interrupted.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer
from rich.console import Console

from thinkstream_client.errors import JobError, ServiceError, ThinkstreamError

from . import batch_command, chat_command, job_commands, status_commands

EXIT_SERVICE, EXIT_USAGE, EXIT_JOB, EXIT_INTERRUPTED = 1, 2, 3, 130
SERVICE_COMMANDS = {
    "up": "Starts the service on this machine.",
    "down": "Stops what `up` started.",
    "demo": "Starts everything, streams a few dozen jobs, stops everything.",
}
"""What the extra ``service`` adds; known here only to say so where it is missing."""


def build_app() -> typer.Typer:
    """Returns the application with every command that is installed."""
    app = typer.Typer(
        name="thinkstream",
        help="Submits jobs to thinkstream, follows them, and looks after the service.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    for module in (job_commands, chat_command, batch_command, status_commands):
        module.register(app)
    if not _register_service(app):
        for name, text in SERVICE_COMMANDS.items():
            app.command(name, help=f"{text} (needs the extra `service`)")(_missing_service)
    return app


def run() -> None:
    """Runs the command that the arguments name and exits."""
    try:
        build_app()()
    except ThinkstreamError as error:
        Console(stderr=True).print(
            f"thinkstream: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone; there is nobody to tell
        sys.exit(EXIT_SERVICE)


def exit_code(error: ThinkstreamError) -> int:
    """Returns the exit code that an error stands for."""
    if isinstance(error, JobError):
        return EXIT_JOB
    return EXIT_SERVICE if isinstance(error, ServiceError) else EXIT_USAGE


def _register_service(app: typer.Typer) -> bool:
    """Adds the commands of other packages; False where the one that starts services is not installed."""
    found = False
    for entry in entry_points(group="thinkstream.commands"):
        try:
            register = entry.load()
        except ModuleNotFoundError:
            continue
        register(app)
        found = True
    return found


def _missing_service() -> None:
    message = "thinkstream: this command needs the extra `service`: pip install 'thinkstream[service]'"
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_USAGE)
