"""`up` at a terminal: a few lines for whoever sits there, and all else in the log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from .log_file import log_path, logged_apart
from .serve import serve
from .state_folder import only_one
from .up_arguments import UpArguments


def serve_here(
    arguments: UpArguments, announce: Callable[[TextIO], None], *, is_verbose: bool = False
) -> None:
    """Serves until a signal.

    Args:
        arguments: What to serve.
        announce: Told where to say that the service is ready, once it is.
        is_verbose: Whether all that is logged appears on the terminal, and in no log.

    Raises:
        ConfigError, ServiceUnavailable, KeyboardInterrupt: As ``serve`` does.
    """
    arguments.checked()
    with only_one():
        if is_verbose:
            serve(arguments, lambda: announce(sys.stdout))
            return
        with logged_apart() as terminal:
            print(f"starting {arguments.model}; the log is {log_path()}", file=terminal, flush=True)
            serve(arguments, lambda: announce(terminal))
            print("the service has ended", file=terminal)
