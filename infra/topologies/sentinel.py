"""A primary and its replica behind Sentinels."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from thinkstream_scheduler.embedded import find_server_binary

from .node import DOWN_AFTER_MS, HOST, Node, ask_raw, free_ports, wait_until


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
        return ask_raw(self.sentinel_ports[0], "SENTINEL", *command)
