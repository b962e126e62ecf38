"""Servers as people run them, on free ports of the loopback: one, with TLS, behind Sentinels, in a Cluster.

For tests and for chaos. Each class starts its processes in a folder of its own, says under which URL it is
reached, and ends what it started. Faults are given to single nodes.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
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


class SentinelSetup:
    """A primary, its replica, and three Sentinels that make the replica the primary when that is dead."""

    service = "mymaster"

    def __init__(self, folder: Path, *, num_sentinels: int = 3, binary: Path | None = None) -> None:
        ports = free_ports(2 + num_sentinels)
        replica_of = {"replicaof": f"{HOST} {ports[0]}"}
        self.servers = [
            Node(folder / "server-0", ports[0], binary=binary),
            Node(folder / "server-1", ports[1], replica_of, binary=binary),
        ]
        self.sentinel_ports = ports[2:]
        self._folder, self._binary = folder, binary or find_server_binary()
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """What clients are given."""
        hosts = ",".join(f"{HOST}:{port}" for port in self.sentinel_ports)
        return f"redis+sentinel://{hosts}/{self.service}"

    @property
    def primary(self) -> Node:
        """The server that the first Sentinel takes for the primary."""
        port = int(self._sentinel("GET-MASTER-ADDR-BY-NAME", self.service)[1])
        return next(node for node in self.servers if node.port == port)

    @property
    def replica(self) -> Node:
        """The other one."""
        primary = self.primary
        return next(node for node in self.servers if node is not primary)

    def start(self) -> None:
        """Starts all and returns once the Sentinels know the replica, and it has the primary's data."""
        for node in self.servers:
            node.start()
        for node in self.servers:
            node.wait_until_it_answers()
        for port in self.sentinel_ports:
            self._start_sentinel(port)
        wait_until(self._is_settled, "the Sentinels are settled")

    def fail_over(self) -> None:
        """Kills the primary, returns once the other one is it, and brings the old one back as its replica."""
        old = self.primary
        old.kill()
        self.bring_back(old)

    def bring_back(self, old: Node) -> None:
        """Waits until the Sentinels have replaced a dead primary, and starts it again as a replica."""
        wait_until(lambda: self.primary is not old, "a replica is promoted")
        # Left to themselves the Sentinels would make a replica of it too, after ten seconds.
        old.start(replicaof=f"{HOST} {self.primary.port}")
        wait_until(lambda: old.ask("ROLE")[0] == "slave", "the old primary is a replica")

    def stop(self) -> None:
        """Ends all processes."""
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait()
        for node in self.servers:
            node.kill()

    def _start_sentinel(self, port: int) -> None:
        # Sentinels write what they learn into their settings, which is why each has a file.
        folder = self._folder / f"sentinel-{port}"
        folder.mkdir(parents=True, exist_ok=True)
        quorum = len(self.sentinel_ports) // 2 + 1
        settings = (
            f"bind {HOST}",
            f"port {port}",
            f"dir {folder}",
            f"logfile {folder / 'log'}",
            f"sentinel monitor {self.service} {HOST} {self.servers[0].port} {quorum}",
            f"sentinel down-after-milliseconds {self.service} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {self.service} 5000",
        )
        file = folder / "sentinel.conf"
        file.write_text("\n".join(settings) + "\n")
        command = [str(self._binary), str(file), "--sentinel"]
        self._sentinels.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    def _is_settled(self) -> bool:
        role = self.servers[1].ask("ROLE")
        known = self._sentinel("SENTINELS", self.service)
        return (
            role[0] == "slave"
            and role[3] == "connected"
            and len(known) == len(self.sentinel_ports) - 1
            and len(self._sentinel("REPLICAS", self.service)) == 1
        )

    def _sentinel(self, *command: str) -> Any:
        return _ask_raw(self.sentinel_ports[0], "SENTINEL", *command)


class ClusterSetup:
    """A Cluster of three primaries, each with as many replicas as asked for."""

    num_primaries = 3

    def __init__(self, folder: Path, *, num_replicas: int = 0, binary: Path | None = None) -> None:
        options = {"cluster-enabled": "yes", "cluster-node-timeout": str(DOWN_AFTER_MS)}
        ports = free_ports(self.num_primaries * (1 + num_replicas))
        self.nodes = [Node(folder / f"node-{port}", port, options, binary) for port in ports]
        self._num_replicas = num_replicas

    @property
    def url(self) -> str:
        """What clients are given: two of the nodes."""
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes[:2])}"

    @property
    def primaries(self) -> list[Node]:
        """The nodes that are primaries and alive."""
        return [node for node in self.nodes if node.pid and node.ask("ROLE")[0] == "master"]

    def start(self) -> None:
        """Starts all and returns once the slots are served."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_it_answers()
        first, *others = self.nodes
        for node in others:
            first.ask("CLUSTER", "MEET", HOST, str(node.port))
        wait_until(self._knows_all, "the nodes know each other")
        share = 16384 // self.num_primaries + 1
        for i, node in enumerate(self.nodes[: self.num_primaries]):
            last = min(16383, (i + 1) * share - 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(i * share), str(last))
        for i, node in enumerate(self.nodes[self.num_primaries :]):
            primary = self.nodes[i % self.num_primaries].ask("CLUSTER", "MYID")
            wait_until(lambda n=node, p=primary: _replicates(n, p), "a replica has joined")  # type: ignore[misc]
        self.wait_until_it_serves()

    def wait_until_it_serves(self) -> None:
        """Returns once every living node says that all is well, replicas included."""
        for node in self.nodes:
            if node.pid:
                wait_until(lambda n=node: _is_well(n), "the Cluster serves")  # type: ignore[misc]

    def fail_over(self, node: Node) -> None:
        """Kills a primary, returns once its replica is one, and brings it back as a replica."""
        node.kill()
        wait_until(lambda: len(self.primaries) == self.num_primaries, "a replica is promoted")
        node.start()
        node.wait_until_it_answers()
        self.wait_until_it_serves()

    def stop(self) -> None:
        """Ends all processes."""
        for node in self.nodes:
            node.kill()

    def move_slot_of(self, key: str) -> None:
        """Gives the slot of a key to another primary, with all that is in it."""
        slot = str(self.nodes[0].ask("CLUSTER", "KEYSLOT", key))
        owner = next(node for node in self.primaries if _owns(node, int(slot)))
        taker = next(node for node in self.primaries if node is not owner)
        taker_id = str(taker.ask("CLUSTER", "MYID"))
        taker.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", str(owner.ask("CLUSTER", "MYID")))
        owner.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", taker_id)
        while keys := _ask_raw(owner.port, "CLUSTER", "GETKEYSINSLOT", slot, "1000"):
            owner.ask("MIGRATE", HOST, str(taker.port), "", "0", "5000", "KEYS", *keys)
        for node in (taker, owner, *self.primaries):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", taker_id)

    def _knows_all(self) -> bool:
        return all(len(_known_nodes(node)) == len(self.nodes) for node in self.nodes)


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


def _ask_raw(port: int, *command: str) -> Any:
    client: Any = redis.Redis(host=HOST, port=port, decode_responses=True)
    client.response_callbacks.clear()
    with client:
        return client.execute_command(*command)


def _known_nodes(node: Node) -> list[str]:
    return str(_ask_raw(node.port, "CLUSTER", "NODES")).strip().splitlines()


def _owns(node: Node, slot: int) -> bool:
    mine = next(line for line in _known_nodes(node) if "myself" in line)
    ranges = [part.split("-") for part in mine.split()[8:] if not part.startswith("[")]
    return any(int(first) <= slot <= int(last[0] if last else first) for first, *last in ranges)


def _replicates(node: Node, primary: str) -> bool:
    return bool(node.ask("CLUSTER", "REPLICATE", primary))


def _is_well(node: Node) -> bool:
    role = _ask_raw(node.port, "ROLE")
    is_ok = "cluster_state:ok" in _ask_raw(node.port, "CLUSTER", "INFO")
    return is_ok and (role[0] == "master" or role[3] == "connected")
