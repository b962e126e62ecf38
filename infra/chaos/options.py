"""What one run of chaos is told."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIGHT_MIX: Mapping[str, int] = {"kill": 3, "stop": 2, "hang": 2, "cut": 3, "client": 2}
"""Light faults and how often each comes up among them.

kill: SIGKILL of a replica, loading ones included. stop: SIGSTOP of one for 0.5 to 3 leases. hang: its busiest
thread alone stands still as long. cut: a connection is closed by the server. client: SIGKILL of a reader.
"""
APPENDFSYNC = ("everysec", "no", "always")
TOPOLOGIES = ("standalone", "sentinel", "cluster")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """One run.

    Attributes:
        seed: Decides jobs, faults and their times; how processes interleave stays the machine's choice.
        seconds: How long there are faults.
        min_jobs: The run, faults included, goes on until so many jobs were submitted.
        light_s: Time between light faults.
        heavy_s: Time between kills of a scheduler, and between kills of Redis; 0 has none.
        raylet_s: Time between kills of the second node's raylet.
        mix: Weight of each light fault.
        topology: One Redis, one behind Sentinels, or a Cluster.
        appendfsync: How often Redis syncs its append-only file.
        second_node: Whether there is a second raylet, which is killed too.
        num_replicas: Replicas.
        slots: Jobs at once of each.
        lease_ms: Lease of a replica's session.
        num_readers: Client processes, each following many jobs.
        window: Jobs that a reader has in flight.
        num_specs: Different requests; jobs repeat them under other names.
        patience_s: Without any token for this long after the last fault, what has not ended is stuck.
        report: Where the JSON report goes; None writes none.
    """

    seed: int = 1
    seconds: float = 1_800.0
    min_jobs: int = 0
    light_s: float = 5.0
    heavy_s: float = 60.0
    raylet_s: float = 180.0
    mix: Mapping[str, int] = field(default_factory=lambda: dict(LIGHT_MIX))
    topology: str = "standalone"
    appendfsync: str = "everysec"
    second_node: bool = False
    num_replicas: int = 3
    slots: int = 12
    lease_ms: int = 5_000
    num_readers: int = 2
    window: int = 14
    num_specs: int = 64
    patience_s: float = 90.0
    report: Path | None = None


def parse_options(arguments: Sequence[str] | None = None) -> ChaosOptions:
    """Reads a command line."""
    usual = ChaosOptions()
    parser = argparse.ArgumentParser(prog="python -m infra.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="how long there are faults")
    parser.add_argument("--jobs", type=int, default=0, help="go on until so many jobs were submitted")
    parser.add_argument(
        "--faults", default=None, metavar="KIND=WEIGHT,...", help=f"of {', '.join(LIGHT_MIX)}"
    )
    parser.add_argument("--light", type=float, default=usual.light_s, help="seconds between light faults")
    parser.add_argument("--heavy", type=float, default=usual.heavy_s, help="between kills of Redis; 0: none")
    parser.add_argument("--raylet", type=float, default=usual.raylet_s, help="between kills of a raylet")
    parser.add_argument("--topology", choices=TOPOLOGIES, default=usual.topology)
    parser.add_argument("--appendfsync", choices=APPENDFSYNC, default=usual.appendfsync)
    parser.add_argument("--second-node", action="store_true", help="a second raylet, killed too")
    parser.add_argument("--replicas", type=int, default=usual.num_replicas)
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="where the JSON goes")
    given = parser.parse_args(arguments)
    return ChaosOptions(
        seed=random.randrange(1_000_000) if given.seed is None else given.seed,
        seconds=given.seconds,
        min_jobs=given.jobs,
        light_s=given.light,
        heavy_s=given.heavy,
        raylet_s=given.raylet,
        mix=dict(LIGHT_MIX) if given.faults is None else _mix(parser, given.faults),
        topology=given.topology,
        appendfsync=given.appendfsync,
        second_node=given.second_node,
        num_replicas=given.replicas,
        report=given.report,
    )


def _mix(parser: argparse.ArgumentParser, text: str) -> dict[str, int]:
    mix: dict[str, int] = {}
    for part in text.split(","):
        kind, _, weight = part.partition("=")
        if kind not in LIGHT_MIX or not weight.isdigit():
            parser.error(f"--faults: {part!r} is not KIND=WEIGHT with a kind of {', '.join(LIGHT_MIX)}")
        mix[kind] = int(weight)
    if not sum(mix.values()):
        parser.error("--faults: all weights are 0")
    return mix
