"""``python -m thinkstream_scheduler``: the commands of services alone, as `up --detach` runs itself."""

from __future__ import annotations

import typer

from .cli import register

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    register(app)
    app()
