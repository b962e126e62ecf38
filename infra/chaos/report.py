"""What a run has shown, as a row of a table and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .audit import WRONGS
from .faults import Fault
from .options import ChaosOptions
from .takeover import Takeover, quantile

HEADER = (
    "| seed | setting | min | jobs | tokens | faults | claims | "
    + " | ".join(WRONGS)
    + " | takeover after a kill p50 / p99 s | after any p50 / p99 s |\n"
    + "|---" * (9 + len(WRONGS))
    + "|"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run.

    Attributes:
        options: What it was told.
        seconds: How long it took, the waiting for its last jobs included.
        jobs: Jobs by how they ended.
        num_tokens: Tokens that readers received.
        num_claims: Claims beyond the first of each job.
        num_forks: Times that a reader saw Redis go back.
        wrong: Counts of what must not be.
        left: What Redis still held as running or waiting when all had ended.
        examples: The first jobs with which something is wrong.
        faults: What was done.
        takeovers: Pauses of jobs whose worker was hit.
    """

    options: ChaosOptions
    seconds: float
    jobs: Counter[str]
    num_tokens: int
    num_claims: int
    num_forks: int
    wrong: dict[str, int]
    left: dict[str, int]
    examples: list[dict[str, Any]]
    faults: Sequence[Fault]
    takeovers: Sequence[Takeover]

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.wrong.values()) and not any(self.left.values())

    @property
    def faults_by_kind(self) -> dict[str, int]:
        """How often each fault was done."""
        return dict(sorted(Counter(fault.kind for fault in self.faults).items()))

    def row(self) -> str:
        """A row under `HEADER`."""
        options = self.options
        setting = f"{options.topology}, {options.appendfsync}, {options.num_replicas} replicas"
        faults = ", ".join(f"{count} {kind}" for kind, count in self.faults_by_kind.items())
        cells: list[object] = [
            options.seed,
            setting + (", 2 nodes" if options.second_node else ""),
            f"{self.seconds / 60:.1f}",
            f"{self.jobs.total():,}",
            f"{self.num_tokens:,}",
            faults,
            f"+{self.num_claims:,}",
            *(self.wrong[name] for name in WRONGS),
            self._pauses(["kill"]),
            self._pauses(None),
        ]
        return "| " + " | ".join(map(str, cells)) + " |"

    def as_json(self) -> str:
        """Everything."""
        options = {**asdict(self.options), "mix": dict(self.options.mix), "report": None}
        content = {
            "options": options,
            "seconds": round(self.seconds, 1),
            "jobs": dict(self.jobs),
            "tokens": self.num_tokens,
            "claims_beyond_first": self.num_claims,
            "forks": self.num_forks,
            "wrong": self.wrong,
            "left": self.left,
            "examples": self.examples,
            "faults_by_kind": self.faults_by_kind,
            "takeover_s": {
                kind: {"count": len(pauses), "p50": quantile(pauses, 0.5), "p99": quantile(pauses, 0.99)}
                for kind, pauses in self._by_kind().items()
            },
            "faults": [asdict(fault) for fault in self.faults],
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def _by_kind(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for takeover in self.takeovers:
            found.setdefault(takeover.kind, []).append(takeover.pause_s)
        return found

    def _pauses(self, kinds: Sequence[str] | None) -> str:
        pauses = [one.pause_s for one in self.takeovers if kinds is None or one.kind in kinds]
        middle, late = quantile(pauses, 0.5), quantile(pauses, 0.99)
        return "-" if middle is None or late is None else f"{middle:.2f} / {late:.2f}"
