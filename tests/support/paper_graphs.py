"""Graphs on paper: what they would launch is called again at each replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class PaperGraph:
    step: Callable[[], None]
    replay_error: Exception | None = None
    num_replays: int = 0

    def replay(self) -> None:
        if self.replay_error is not None:
            raise self.replay_error
        self.num_replays += 1
        self.step()


@dataclass
class PaperCapture:
    """A ``Capture`` that does nothing of a step while it captures, like the real one."""

    capture_error: Exception | None = None
    replay_error: Exception | None = None
    graphs: list[PaperGraph] = field(default_factory=list[PaperGraph])

    def __call__(self, step: Callable[[], None]) -> PaperGraph:
        if self.capture_error is not None:
            raise self.capture_error
        self.graphs.append(PaperGraph(step, self.replay_error))
        return self.graphs[-1]

    @property
    def num_replays(self) -> int:
        return sum(graph.num_replays for graph in self.graphs)
