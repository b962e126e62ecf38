"""A server that speaks TLS, and the certificates for it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .node import HOST, Node, free_ports, wait_until


class TlsServer:
    """One server that speaks TLS alone, with a certificate of an authority of its own.

    Args:
        folder: Where certificates and data lie.
        binary: A server that was built with TLS; the embedded one is not.
    """

    def __init__(self, folder: Path, binary: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = folder / "ca.crt"
        make_certificates(folder)
        port = free_ports(1)[0]
        self.node = Node(
            folder / "server",
            port,
            {
                "port": "0",
                "tls-port": str(port),
                "tls-cert-file": str(folder / "server.crt"),
                "tls-key-file": str(folder / "server.key"),
                "tls-ca-cert-file": str(self.ca_file),
                "tls-auth-clients": "no",
            },
            binary,
        )

    @property
    def url(self) -> str:
        """What clients are given."""
        return f"rediss://{HOST}:{self.node.port}/0?ssl_ca_certs={self.ca_file}"

    def start(self) -> None:
        """Starts it and returns once it answers."""
        self.node.start()

        def answers() -> bool:
            with self.node.client(ssl=True, ssl_ca_certs=str(self.ca_file)) as client:
                return bool(client.ping())

        wait_until(answers, "the TLS server answers")

    def stop(self) -> None:
        """Ends it."""
        self.node.kill()


def make_certificates(folder: Path) -> None:
    """Writes ``ca.crt``, and ``server.crt`` with ``server.key`` for the loopback, by the openssl command.

    Raises:
        FileNotFoundError: There is no openssl.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise FileNotFoundError("openssl")
    key = ("-newkey", "rsa:2048", "-nodes")
    _run(
        openssl,
        "req",
        "-x509",
        *key,
        "-days",
        "2",
        "-subj",
        "/CN=thinkstream test CA",
        folder=folder,
        out=("-keyout", "ca.key", "-out", "ca.crt"),
    )
    _run(
        openssl,
        "req",
        *key,
        "-subj",
        f"/CN={HOST}",
        folder=folder,
        out=("-keyout", "server.key", "-out", "server.csr"),
    )
    (folder / "names").write_text(f"subjectAltName=IP:{HOST},DNS:localhost\n")
    _run(
        openssl,
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        folder=folder,
        out=("-out", "server.crt"),
    )


def _run(*command: str, folder: Path, out: Sequence[str]) -> None:
    subprocess.run([*command, *out], cwd=folder, check=True, capture_output=True)
