"""A service in the background: started by `up --detach`, ended by `down`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from thinkstream_client.discovery import read_state, remove_state
from thinkstream_client.errors import ServiceUnavailable

from . import processes
from .detached import decode_report, encode_arguments
from .leftovers import end_processes, end_remote_actors
from .log_file import log_path, opened_log
from .serve import MAIN_PROCESS
from .state_folder import holder, only_one
from .up_arguments import UpArguments

_KILL_TIMEOUT_S = 2.0


def start_detached(arguments: UpArguments) -> None:
    """Runs `up` in a session of its own and returns once it is ready.

    Its output goes to a log file in the state folder, where that of the service before stays too.

    Args:
        arguments: What it serves.

    Raises:
        ConfigError, ServiceUnavailable: What the child said before it ended, or another service runs here.
    """
    with only_one() as lock, opened_log() as log:  # a service that runs still writes its log
        child, said = _started(arguments, log, lock)
        if not said:
            raise ServiceUnavailable(
                f"`up` ended with code {child.wait()}{_last_line(log_path())}; see {log_path()}"
            )
    decode_report(said).check()


def _started(arguments: UpArguments, log: BinaryIO, lock: int) -> tuple[subprocess.Popen[bytes], bytes]:
    """The child, which holds the state folder as we do, and what it said; nothing if it died unheard."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as line:
        child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.detached", str(writing), str(lock)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writing, lock),
            start_new_session=True,
        )
        os.close(writing)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:  # what it died of is told
                child.stdin.write(encode_arguments(arguments))
            return child, line.read()  # to its end, which comes with the report or the child's death
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise


def stop_service(timeout_s: float) -> bool:
    """Ends the service of this machine, one that is still starting too, and whatever is left of it.

    Args:
        timeout_s: How long it may drain before it is killed.

    Returns:
        Whether there was one.

    Raises:
        ConfigError: The state file is broken.
        ServiceUnavailable: Ray does not end its actors.
    """
    is_held, state = _end_holder(timeout_s), read_state()
    if state is None:
        return is_held
    # The parts end with the main process; what does not, because that was killed, is ended one by one.
    end_processes(state, MAIN_PROCESS, timeout_s=timeout_s)
    end_processes(state)
    if read_state() == state:  # it takes the file away when it has ended everything itself
        end_remote_actors(state)
        remove_state()
    return True


def _end_holder(timeout_s: float) -> bool:
    """Ends the process that holds the state folder; returns whether there was one."""
    mark = holder()
    if mark is None:
        return False
    below = processes.descendants(mark.pid)
    processes.end({mark.pid: mark.start_time}, timeout_s=timeout_s)
    processes.end(below, timeout_s=_KILL_TIMEOUT_S)  # they end with it, unless it was killed
    return True


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
    return ""
