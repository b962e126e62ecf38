"""A service in the background: started by `up --detach`, ended by `down`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from thinkstream_client.discovery import read_state, remove_state, state_dir
from thinkstream_client.errors import ServiceUnavailable

from .detached import decode_report, encode_arguments
from .leftovers import end_processes, end_remote_actors
from .serve import MAIN_PROCESS, only_one
from .up_arguments import UpArguments

LOG_FILE = "up.log"
FORMER_LOG_FILE = "up.log.1"


def start_detached(arguments: UpArguments) -> None:
    """Runs `up` in a session of its own and returns once it is ready.

    Its output goes to a log file in the state folder, where that of the service before stays too.

    Args:
        arguments: What it serves.

    Raises:
        ConfigError, ServiceUnavailable: What the child said before it ended.
    """
    folder = state_dir()
    with only_one():  # a service that runs still writes its log
        if (folder / LOG_FILE).exists():
            os.replace(folder / LOG_FILE, folder / FORMER_LOG_FILE)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as line, (folder / LOG_FILE).open("ab") as log:
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
        raise ServiceUnavailable(f"`up` ended with code {child.wait()}; see {folder / LOG_FILE}")
    decode_report(said).check()


def stop_service(timeout_s: float) -> bool:
    """Ends the service of this machine and whatever is left of it.

    Args:
        timeout_s: How long it may drain before it is killed.

    Returns:
        Whether there was one.

    Raises:
        ConfigError: The state file is broken.
        ServiceUnavailable: Ray does not end its actors.
    """
    state = read_state()
    if state is None:
        return False
    # The parts end with the main process; what does not, because that was killed, is ended one by one.
    end_processes(state, MAIN_PROCESS, timeout_s=timeout_s)
    end_processes(state)
    if read_state() == state:  # it takes the file away when it has ended everything itself
        end_remote_actors(state)
        remove_state()
    return True
