"""The command ``thinkstream``. Commands that start services come from the extra ``service``.

Only this package imports typer and rich, and it does so when the command runs.
"""

from __future__ import annotations


def main() -> None:
    """Runs the command line; ends the process with its exit code."""
    from .app import run

    run()
