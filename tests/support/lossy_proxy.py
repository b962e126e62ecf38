"""A proxy that has Redis carry a command out and cuts the connection instead of passing the reply."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from urllib.parse import urlsplit

_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n(?:\$\d+\r\n(\w+)\r\n)?")


class LossyProxy:
    """Listens on a port of its own; each party that is to suffer connects through it.

    Clients here wait for a reply before they send more, so the numbers of replies are those of round trips.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 6379)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"
        self._lock = threading.Lock()
        self._lose_at: int | None = None
        self.names: list[str] = []
        """What was asked, one per reply since the last ``arm``."""
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, lose_at: int | None) -> None:
        """Counts from 0 again; the reply of this number is lost."""
        with self._lock:
            self.names.clear()
            self._lose_at = lose_at

    @property
    def has_lost(self) -> bool:
        """Whether that reply came."""
        return self._lose_at is not None and len(self.names) > self._lose_at

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked: list[bytes] = [b""]
            back = threading.Thread(target=self._carry_back, args=(client, server, asked), daemon=True)
            back.start()
            try:
                while data := client.recv(1 << 16):
                    asked[0] += data
                    server.sendall(data)
            except OSError:
                pass
            _shut(server)
            back.join()

    def _carry_back(self, client: socket.socket, server: socket.socket, asked: list[bytes]) -> None:
        try:
            while data := server.recv(1 << 20):
                # A reply may come in pieces, of which the first tells that the command was carried out.
                command, asked[0] = asked[0], b""
                if command and self._is_lost(command):
                    break
                client.sendall(data)
        except OSError:
            pass
        _shut(client)
        _shut(server)

    def _is_lost(self, asked: bytes) -> bool:
        with self._lock:
            self.names.append("+".join(_names(asked)))
            return self._lose_at == len(self.names) - 1


def _names(asked: bytes) -> list[str]:
    return [
        (second if first.startswith(b"FCALL") else first).decode()
        for first, second in _COMMAND.findall(asked)
    ]


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
