"""A service in the background: started by `up --detach`, ended by `down`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from thinkstream_client.discovery import naming, read_state, remove_state, state_dir
from thinkstream_client.errors import ServiceUnavailable

from . import processes
from .detached import decode_report, encode_arguments
from .leftovers import end_processes, end_remote_actors
from .serve import MAIN_PROCESS
from .state_folder import holder, only_one
from .up_arguments import UpArguments

LOG_FILE = "up.log"
FORMER_LOG_FILE = "up.log.1"
_KILL_TIMEOUT_S = 2.0


def start_detached(arguments: UpArguments) -> None:
    """Runs `up` in a session of its own and returns once it is ready.

    Its output goes to a log file in the state folder, where that of the service before stays too.

    Args:
        arguments: What it serves.

    Raises:
        ConfigError, ServiceUnavailable: What the child said before it ended, or another service runs here.
    """
    log_path = state_dir() / LOG_FILE
    with only_one(), naming(log_path):  # a service that runs still writes its log
        if log_path.exists():
            os.replace(log_path, log_path.with_name(FORMER_LOG_FILE))
        log = log_path.open("ab")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as line, log:
        child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.detached", str(writing)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:  # what it died of is told below
                child.stdin.write(encode_arguments(arguments))
            said = line.read()  # to its end, which comes with the report or the child's death
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    if not said:
        raise ServiceUnavailable(f"`up` ended with code {child.wait()}{_last_line(log_path)}; see {log_path}")
    decode_report(said).check()


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


def _last_line(log_path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log_path.read_text(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
    return ""
