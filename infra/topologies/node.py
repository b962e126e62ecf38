"""One server process of any setup, and what a setup waits for."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from thinkstream_scheduler.embedded import find_server_binary

HOST = "127.0.0.1"
DOWN_AFTER_MS = 1_000
"""Silence after which Sentinels and Cluster take a node for dead."""

_START_TIMEOUT_S = 20.0
_COMMON = {
    "bind": HOST,
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "stream-node-max-bytes": "512",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}


def free_ports(count: int) -> list[int]:
    """Returns ports nobody listens on, low enough for the second port that a Cluster takes beside each."""
    ports: list[int] = []
    with contextlib.ExitStack() as open_sockets:
        while len(ports) < count:
            probe = open_sockets.enter_context(socket.socket())
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
            if port < 50_000:
                ports.append(port)
    return ports


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Returns once the condition holds; an error of the server is a no.

    Raises:
        TimeoutError: It did not in time.
    """
    until_s = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        if time.monotonic() > until_s:
            raise TimeoutError(f"{what} within {timeout_s:g} s")
        time.sleep(0.02)


class Node:
    """One server process.

    Args:
        folder: Where its data and its log lie.
        port: Where it listens.
        options: Settings beside the common ones, and over them.
        binary: The server; None is the one that `thinkstream up` would start.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        options: Mapping[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        self.port = port
        self._folder, self._binary = folder, binary or find_server_binary()
        self._options = {**_COMMON, "port": str(port), **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_valkey(self) -> bool:
        """Whether it is a Valkey, which has what came after Redis 7.0."""
        return "valkey" in self._binary.name

    @property
    def pid(self) -> int:
        """Its process, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self, **more: str) -> None:
        """Starts it on the data that it has, and returns at once; ``more`` are settings for this time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {**self._options, "dir": str(self._folder), "logfile": str(self._folder / "log"), **more}
        self._process = subprocess.Popen(
            [str(self._binary), *(part for name, value in options.items() for part in (f"--{name}", value))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Makes it hang."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """Returns a client of this node alone; its values are strings."""
        return redis.Redis(host=HOST, port=self.port, decode_responses=True, **options)

    def ask(self, *command: str) -> Any:
        """Runs one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def wait_until_it_answers(self) -> None:
        """Returns once it does."""
        wait_until(lambda: self.ask("PING") is not None, f"port {self.port} answers")

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def ask_raw(port: int, *command: str) -> Any:
    """Runs one command on whoever listens there, and returns the reply as it comes."""
    client: Any = redis.Redis(host=HOST, port=port, decode_responses=True)
    client.response_callbacks.clear()
    with client:
        return client.execute_command(*command)
