"""Redis as it is killed in each topology: one server, behind Sentinels, in a Cluster."""

from __future__ import annotations

import os
import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.topologies import ClusterSetup, Node, SentinelSetup

from thinkstream_scheduler.embedded import EmbeddedServer


class Servers(ABC):
    """Servers of one topology, whose processes may be killed one at a time."""

    @property
    @abstractmethod
    def url(self) -> str:
        """What clients are given."""

    @abstractmethod
    def start(self) -> None:
        """Starts all; returns when they serve."""

    @abstractmethod
    def kill(self, rng: random.Random) -> int | None:
        """Kills one that clients write to.

        Returns:
            Its process; None if none was killed because what was killed before is not whole again: two
            failures at once lose data in any Redis that does not wait for its replicas.
        """

    @abstractmethod
    def restart(self) -> None:
        """Starts what was killed again, on its data and its port."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all."""

    @abstractmethod
    def ports(self) -> list[int]:
        """Where the servers that live listen."""


class OneServer(Servers):
    """One server. While it is dead there is none.

    Args:
        folder: Where its data lie.
    """

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedServer(folder)

    @property
    def url(self) -> str:
        """What clients are given."""
        return self._server.url

    def start(self) -> None:
        """Starts it, on the port that it had."""
        self._server.start()

    def kill(self, rng: random.Random) -> int:
        """Kills it."""
        pid = self._server.pid
        os.kill(pid, signal.SIGKILL)
        self._server.stop()
        return pid

    def restart(self) -> None:
        """Starts it again."""
        self._server.start()

    def stop(self) -> None:
        """Ends it."""
        self._server.stop()

    def ports(self) -> list[int]:
        """Its port, if it lives."""
        return [int(self.url.rpartition(":")[2].partition("/")[0])] if self._server.is_running else []


class _ManyServers(Servers):
    """Servers of which one takes another's place when that is killed."""

    def __init__(
        self, setup: SentinelSetup | ClusterSetup, nodes: Sequence[Node], num_primaries: int
    ) -> None:
        self._setup, self._nodes, self._num_primaries = setup, nodes, num_primaries

    @property
    def url(self) -> str:
        """What clients are given."""
        return self._setup.url

    def start(self) -> None:
        """Starts all."""
        self._setup.start()

    def kill(self, rng: random.Random) -> int | None:
        """Kills a primary, if all replicas are in step."""
        primaries = self._primaries()
        if len(primaries) != self._num_primaries:
            return None
        node = rng.choice(primaries)
        pid = node.pid
        node.kill()
        return pid

    def restart(self) -> None:
        """Starts those that were killed."""
        for node in self._nodes:
            if not node.pid:
                node.start()
                node.wait_until_it_answers()

    def stop(self) -> None:
        """Ends all."""
        self._setup.stop()

    def ports(self) -> list[int]:
        """Where those that live listen."""
        return [node.port for node in self._nodes if node.pid]

    def _primaries(self) -> list[Node]:
        """The primaries; none unless every node lives, and is one or follows one."""
        primaries: list[Node] = []
        for node in self._nodes:
            role = node.ask("ROLE") if node.pid else ["dead"]
            if role[0] == "master":
                primaries.append(node)
            elif role[0] != "slave" or role[3] != "connected":
                return []
        return primaries


class BehindSentinels(_ManyServers):
    """A primary and a replica; three Sentinels watch them.

    Args:
        folder: Where their data lie.
    """

    def __init__(self, folder: Path) -> None:
        self._sentinels = SentinelSetup(folder)
        super().__init__(self._sentinels, self._sentinels.servers, 1)


class InCluster(_ManyServers):
    """Three primaries with a replica each.

    Args:
        folder: Where their data lie.
    """

    def __init__(self, folder: Path) -> None:
        self._cluster = ClusterSetup(folder, num_replicas=1)
        super().__init__(self._cluster, self._cluster.nodes, ClusterSetup.num_primaries)


def make_servers(topology: str, folder: Path) -> Servers:
    """The servers of a topology, not started."""
    kinds: dict[str, Any] = {"standalone": OneServer, "sentinel": BehindSentinels, "cluster": InCluster}
    servers: Servers = kinds[topology](folder)
    return servers
