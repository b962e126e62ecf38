"""What is found where a Ray cluster is said to be."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from thinkstream_client.errors import ConfigError, ServiceUnavailable
from thinkstream_scheduler.cluster_address import check_address, check_answers

Listen = Callable[[bytes | None], str]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Starts a server that answers each connection with some bytes, or not at all; returns its address."""
    servers: list[socket.socket] = []
    open_connections: list[socket.socket] = []

    def listen(answer: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def accept() -> None:
            connection, _ = server.accept()
            open_connections.append(connection)
            with contextlib.suppress(OSError):  # whoever asked may have heard enough
                if answer is not None:
                    connection.recv(1024)
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=accept, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for one in (*servers, *open_connections):
        one.close()


@pytest.mark.parametrize("address", ["auto", "host:6379", "10.0.0.1:1", "[::1]:6379"])
def test_forms_of_an_address(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    "address", ["", "local", "host", "host:", "host:0", "host:99999", ":1", "redis://h:1", "a b:1"]
)
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^ray_address: got '.*', allowed: HOST:PORT or auto$"):
        check_address(address)


def test_a_server_that_speaks_as_ray_does_is_let_pass(listen: Listen) -> None:
    check_answers(listen(b"\0\0\x18\4\0\0\0\0\0"))
    check_answers("auto")


def test_what_does_not_answer_is_named_with_the_reason(listen: Listen) -> None:
    with pytest.raises(
        ServiceUnavailable, match=r"^Ray at 127\.0\.0\.1:1 does not answer: Connection refused$"
    ):
        check_answers("127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(ServiceUnavailable, match=r"does not answer: timed out$"):
        check_answers(listen(None), timeout_s=0.2)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("answer", [b"", b"-ERR unknown command 'PRI'\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
def test_another_server_is_told_from_ray(listen: Listen, answer: bytes) -> None:
    with pytest.raises(ServiceUnavailable, match="what listens there is no Ray"):
        check_answers(listen(answer))
