"""A Cluster of three primaries, with or without replicas."""

from __future__ import annotations

from pathlib import Path

from .node import DOWN_AFTER_MS, HOST, Node, ask_raw, free_ports, wait_until


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
        while keys := ask_raw(owner.port, "CLUSTER", "GETKEYSINSLOT", slot, "1000"):
            owner.ask("MIGRATE", HOST, str(taker.port), "", "0", "5000", "KEYS", *keys)
        for node in (taker, owner, *self.primaries):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", taker_id)

    def _knows_all(self) -> bool:
        return all(len(_known_nodes(node)) == len(self.nodes) for node in self.nodes)


def _known_nodes(node: Node) -> list[str]:
    return str(ask_raw(node.port, "CLUSTER", "NODES")).strip().splitlines()


def _owns(node: Node, slot: int) -> bool:
    mine = next(line for line in _known_nodes(node) if "myself" in line)
    ranges = [part.split("-") for part in mine.split()[8:] if not part.startswith("[")]
    return any(int(first) <= slot <= int(last[0] if last else first) for first, *last in ranges)


def _replicates(node: Node, primary: str) -> bool:
    return bool(node.ask("CLUSTER", "REPLICATE", primary))


def _is_well(node: Node) -> bool:
    role = ask_raw(node.port, "ROLE")
    is_ok = "cluster_state:ok" in ask_raw(node.port, "CLUSTER", "INFO")
    return is_ok and (role[0] == "master" or role[3] == "connected")
