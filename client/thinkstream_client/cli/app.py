"""Puts the commands together, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 the service cannot do it now, 2 the request or the installation is wrong, 3 the job
ended without a whole result, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Annotated, Any, NoReturn

import typer

from thinkstream_client.errors import JobError, ServiceError, ThinkstreamError

from . import (
    batch_command,
    chat_command,
    dead_commands,
    inspect_commands,
    job_commands,
    status_commands,
)
from .extra import SERVICE_HINT, SERVICE_PACKAGES
from .output import print_error

_MODULES = (
    job_commands,
    inspect_commands,
    chat_command,
    batch_command,
    status_commands,
    dead_commands,
)
"""Their commands are listed in this order."""
EXIT_SERVICE, EXIT_USAGE, EXIT_JOB, EXIT_INTERRUPTED = 1, 2, 3, 130
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # click's, or typer's own: by its version


def build_app() -> typer.Typer:
    """Returns the application with every command that is installed."""
    app = typer.Typer(
        name="thinkstream",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(thinkstream)
    for module in _MODULES:
        module.register(app)
    for entry in entry_points(group="thinkstream.commands"):  # of other packages of ours: up, down, demo
        entry.load()(app)
    return app


def run(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the arguments name and exits.

    Args:
        args: The arguments; those of the process where None.
    """
    try:
        code = build_app()(args, prog_name="thinkstream", standalone_mode=False)
        sys.stdout.flush()
    except ThinkstreamError as error:
        print_error(error)
        sys.exit(exit_code(error))
    except _USAGE_ERROR as error:
        _print_usage(error)
        sys.exit(EXIT_USAGE)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in SERVICE_PACKAGES:
            raise
        print_error(SERVICE_HINT)
        sys.exit(EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us has gone; what is left in the buffer goes where nobody minds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_SERVICE)
    sys.exit(code or 0)


def exit_code(error: ThinkstreamError) -> int:
    """Returns the exit code that an error stands for."""
    if isinstance(error, JobError):
        return EXIT_JOB
    return EXIT_SERVICE if isinstance(error, ServiceError) else EXIT_USAGE


def print_version(is_wanted: bool) -> None:
    """Prints the version and ends, where that is wanted."""
    if is_wanted:
        print(f"thinkstream {version('thinkstream')}")
        raise typer.Exit


def thinkstream(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Print the version and end.", is_eager=True, callback=print_version
        ),
    ] = False,
) -> None:
    """Submits jobs to thinkstream, follows them, and looks after the service.

    Example: `thinkstream submit "What is the capital of France?"`
    """


def _print_usage(error: Any) -> None:
    message = error.format_message()
    if not message or "\n" in message:  # no arguments at all: it is the help, where that is not printed yet
        print(message, file=sys.stderr)
        return
    command = error.ctx.command_path if error.ctx is not None else "thinkstream"
    print_error(f"{message.rstrip('.')}; see `{command} --help`")
