"""Ray as this service uses it: quiet, small, and with no process and no file of its own once it is left.

Knows nothing of jobs and replicas. ``ray`` itself is imported behind the settings that it reads from the
environment at import. Those stay in the environment, for Ray reads them once: without them a second
connection of the process would be half another Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any

from thinkstream_client.errors import ServiceUnavailable, ThinkstreamError

from . import processes
from .cluster_address import check_answers

_OBJECT_STORE_BYTES = 100 << 20  # only control messages pass through it; Ray's least is 75 MiB
_SHORT_TEMP = Path("/tmp")
_STRAGGLER_TIMEOUT_S = 1.0
_MAX_LOOKS = 10
_LOOK_AGAIN_S = 0.05
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_DISABLE_DASHBOARD_LOG_INFO": "1",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # SIGTERM is how we are asked to drain
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # It would end a replica because other programs fill the machine; a replica takes its memory at load.
    "RAY_memory_monitor_refresh_ms": "0",
}
_ENVIRONMENT_ELSEWHERE = {
    # A cluster that stops answering while it is connected to: 20 times 40 s are what Ray would wait.
    "RAY_NUM_REDIS_GET_RETRIES": "5",
    "RAY_py_gcs_connect_timeout_s": "5",
}
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class RayRuntime:
    """This process's connection to a Ray cluster, from construction to `close`.

    Args:
        address: A running cluster; None starts one of our own on this machine, for this machine alone,
            which lives as long as the connection and at most as long as this process.
        show_logs: Whether what actors write appears on our stderr.

    Raises:
        ConfigError: The address is of no known form.
        ServiceUnavailable: Ray cannot be reached or started.
        KeyboardInterrupt: A signal came meanwhile; Ray is left again by then.
    """

    def __init__(self, *, address: str | None, show_logs: bool) -> None:
        self._not_ours = processes.descendants(os.getpid())
        self._folder: Path | None = None
        self._ray: Any = None
        try:
            self._connect(address, show_logs=show_logs)
        except ThinkstreamError:
            self.close()
            raise
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            self.close()
            where = f"at {address}" if address else "on this machine"
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise ServiceUnavailable(f"Ray {where} does not work: {first_line}") from error
        except BaseException:
            self.close()
            raise

    def _connect(self, address: str | None, *, show_logs: bool) -> None:
        options: dict[str, Any] = {"address": address}
        if address is None:
            self._folder = _short_folder()
            options = {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(self._folder),
            }
        else:
            check_answers(address)
        _set_environment(is_local=address is None)
        with _sigterm_afterwards() if address is None else _signals_at_once():
            import ray

            self._ray = ray
            ray.init(logging_level=logging.ERROR, log_to_driver=show_logs, **options)

    def local_processes(self) -> list[int]:
        """Ids of the processes of a cluster of our own, actors included."""
        return sorted(self._ours())

    def room(self) -> dict[str, float]:
        """What the cluster has free, by Ray's names; of one of our own, all that it has."""
        found: dict[str, float]
        found = self._ray.available_resources() if self._folder is None else self._ray.cluster_resources()
        return found

    def close(self) -> None:
        """Leaves the cluster; one of our own ends with all its processes and files."""
        ours = self._ours()
        if self._ray is not None:
            self._ray.shutdown()
        # Ray's agents look for their parent's death once in a while: a minute after it was killed they
        # may still be there. What was being started when ``ray.init`` was left, Ray itself may not know.
        for _ in range(_MAX_LOOKS):
            ours |= self._ours()
            if not ours:
                break
            processes.end(ours, timeout_s=_STRAGGLER_TIMEOUT_S)
            ours = {}
        if self._folder is not None:
            _remove(self._folder)

    def _ours(self) -> dict[int, int]:
        if self._folder is None:
            return {}
        now = processes.descendants(os.getpid())
        return {pid: started for pid, started in now.items() if self._not_ours.get(pid) != started}


def _short_folder() -> Path:
    """A new folder for sockets, whose paths have 107 characters at most."""
    return Path(
        tempfile.mkdtemp(prefix="thinkstream-ray-", dir=_SHORT_TEMP if _SHORT_TEMP.is_dir() else None)
    )


def _set_environment(*, is_local: bool) -> None:
    for name, value in (_ENVIRONMENT | ({} if is_local else _ENVIRONMENT_ELSEWHERE)).items():
        os.environ.setdefault(name, value)
    if is_local and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Ray listens on all interfaces: a token that only our own processes know shuts others out. Where
        # somebody has imported ray already, it has read its settings, and makes a token of its own.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _remove(folder: Path) -> None:
    """Removes a folder, again if somebody was just writing into it."""
    for _ in range(_MAX_LOOKS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_LOOK_AGAIN_S)


@contextlib.contextmanager
def _sigterm_afterwards() -> Generator[None]:
    """Keeps SIGTERM for the end of a block that calls ``ray.init``, and the caller's handler in its place.

    Ray sets a handler of its own, which raises in the middle of whatever runs: that loses the signal where
    it is swallowed, and processes that have just been started.

    Raises:
        KeyboardInterrupt: SIGTERM came meanwhile.
    """
    has_come = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True

    try:
        with _handled(note, signal.SIGTERM):
            yield
    finally:
        if has_come:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _signals_at_once() -> Generator[None]:
    """Ends a block that calls ``ray.init`` at the next signal: nothing is started there that could be lost.

    The caller's handlers hear of it too, for Ray may swallow what is raised.

    Raises:
        KeyboardInterrupt: A signal came.
    """
    former = {number: signal.getsignal(number) for number in _STOP_SIGNALS}

    def leave(number: int, frame: FrameType | None) -> None:
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt

    with _handled(leave, *_STOP_SIGNALS):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Generator[None]:
    """Has signals handled in one way within a block that calls ``ray.init``, whatever Ray sets.

    Does nothing outside the main thread: Ray sets no handlers there, nor may we.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals: Any = signal
    set_handler = signals.signal

    def set_other_handler(number: int, other: Any) -> Any:
        return handler if number in numbers else set_handler(number, other)

    former = {number: set_handler(number, handler) for number in numbers}
    # Only the main thread may set handlers, and it is in ``ray.init``: whoever sets one now is Ray.
    signals.signal = set_other_handler
    try:
        yield
    finally:
        signals.signal = set_handler
        for number, one in former.items():
            if one is not None:
                set_handler(number, one)
