"""A service in the background: started by `up --detach`, ended by `down`, by process ids and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from thinkstream_client.discovery import ServiceState, read_state, remove_state, state_dir
from thinkstream_client.errors import ConfigError, ServiceUnavailable

from . import processes
from .serve import MAIN_PROCESS, UpOptions

LOG_FILE = "up.log"
ERROR_PREFIX = "error: "
"""How the CLI begins its one line about a failure."""

_POLL_S = 0.1
_TERM_TIMEOUT_S = 10.0
_EXIT_CONFIG = 2
_OUR_WORDS = (b"thinkstream", b"ray", b"valkey-server", b"redis-server")


def start_detached(options: UpOptions) -> ServiceState:
    """Runs `up` in a session of its own and returns once it is ready.

    Its output goes to a log file in the state folder.

    Args:
        options: What it serves.

    Raises:
        ConfigError, ServiceUnavailable: What the child said before it ended.
    """
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / LOG_FILE).open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "thinkstream_scheduler", "up", *_arguments(options)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _wait_until_ready(child, folder / LOG_FILE)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def stop_service(timeout_s: float) -> bool:
    """Ends the service of this machine and whatever is left of it.

    Args:
        timeout_s: How long it may drain before it is killed.

    Returns:
        Whether there was one.

    Raises:
        ConfigError: The state file is broken.
    """
    state = read_state()
    if state is None:
        return False
    # The parts end with the main process; what does not, because that was killed, is ended by id.
    parts = {part: _identified(pid) for part, pid in state.pids.items()}
    processes.end(parts.pop(MAIN_PROCESS, {}), timeout_s=timeout_s)
    if not state.ray_address:
        left = {pid: started for found in parts.values() for pid, started in found.items()}
        processes.end(left, timeout_s=_TERM_TIMEOUT_S)
    remove_state()
    return True


def _arguments(options: UpOptions) -> list[str]:
    """The command line that gives ``options`` again."""
    values = {
        "--redis": options.redis_url,
        "--partitions": options.num_partitions,
        "--ray": options.ray_address,
        "--model": options.model,
        "--replicas": options.num_replicas,
        "--slots": options.slots,
        "--device": options.device,
        "--dtype": options.dtype,
        "--max-context": options.max_context,
        "--namespace": options.namespace,
        "--drain": options.drain_timeout_s,
    }
    return [part for name, value in values.items() if value is not None for part in (name, str(value))]


def _wait_until_ready(child: subprocess.Popen[bytes], log: Path) -> ServiceState:
    while True:
        code = child.poll()
        if code is not None:
            reason = _last_error(log) or f"`up` ended with code {code}; see {log}"
            raise ConfigError(reason) if code == _EXIT_CONFIG else ServiceUnavailable(reason)
        state = read_state()
        if state is not None and state.pids.get(MAIN_PROCESS) == child.pid:
            return state
        time.sleep(_POLL_S)


def _last_error(log: Path) -> str | None:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(ERROR_PREFIX)]
    return errors[-1].removeprefix(ERROR_PREFIX) if errors else None


def _identified(pid: int) -> dict[int, int]:
    """A process with its start time, if it is one of ours: ids are given again to others."""
    started = processes.start_time(pid)
    if started is None:
        return {}
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return {}
    return {pid: started} if any(word in command for word in _OUR_WORDS) else {}
