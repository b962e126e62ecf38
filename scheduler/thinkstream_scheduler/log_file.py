"""The log of a service, in its state folder, of which a terminal shows the few lines for a person."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from thinkstream_client.discovery import naming, state_dir
from thinkstream_workers.log_format import LOG_FORMAT

_LOG_FILE = "up.log"
_FORMER_LOG_FILE = "up.log.1"
_FOR_A_PERSON = re.compile(
    r" (?:(?P<level>WARNING|ERROR|CRITICAL) \S+|INFO thinkstream_scheduler\.serve): (?P<message>.*)"
)


def log_path() -> Path:
    """Where the log lies."""
    return state_dir() / _LOG_FILE


def opened_log() -> BinaryIO:
    """A new log; that of the service before stays beside it. The caller holds the state folder.

    Raises:
        ConfigError: It cannot be written.
    """
    path = log_path()
    with naming(path):
        if path.exists():
            os.replace(path, path.with_name(_FORMER_LOG_FILE))
        return path.open("ab", buffering=0)


class LogWriter:
    """Stands in the place of stdout and stderr: all goes to the log, what is for a person to a terminal too.

    Args:
        log: Gets everything.
        terminal: Gets warnings, errors and what ``serve`` says.
    """

    def __init__(self, log: BinaryIO, terminal: TextIO) -> None:
        self._log, self._terminal = log, terminal

    def write(self, text: str) -> int:
        """Writes some text: a line without its end, or more."""
        with contextlib.suppress(OSError):  # a full disk ends no service
            self._log.write(text.encode(errors="replace"))
        for found in _FOR_A_PERSON.finditer(text):
            level = f"{found['level'].lower()}: " if found["level"] else ""
            with contextlib.suppress(OSError):  # nor does a terminal that has gone
                print(f"{level}{found['message']}", file=self._terminal, flush=True)
        return len(text)

    def flush(self) -> None:
        """Does nothing: nothing is held back."""

    def fileno(self) -> int:
        """The log's descriptor."""
        return self._log.fileno()

    def isatty(self) -> bool:
        """It is none."""
        return False


@contextlib.contextmanager
def logged_apart() -> Generator[TextIO]:
    """Has all that this process writes go to a new log, within a block; yields the terminal.

    Raises:
        ConfigError: The log cannot be written.
    """
    with contextlib.ExitStack() as cleanup:
        log = cleanup.enter_context(opened_log())
        sys.stdout.flush()
        terminal = cleanup.enter_context(os.fdopen(os.dup(1), "w", errors="replace"))
        for descriptor in (1, 2):  # for what is not written in Python
            former = os.dup(descriptor)
            cleanup.callback(os.close, former)
            cleanup.callback(os.dup2, former, descriptor)
            os.dup2(log.fileno(), descriptor)
        writer = cast("TextIO", LogWriter(log, terminal))
        cleanup.enter_context(contextlib.redirect_stdout(writer))
        cleanup.enter_context(contextlib.redirect_stderr(writer))
        handler = logging.StreamHandler(writer)
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        root = logging.getLogger()
        cleanup.callback(root.setLevel, root.level)
        root.setLevel(logging.INFO)
        cleanup.callback(root.removeHandler, handler)
        root.addHandler(handler)
        yield terminal
