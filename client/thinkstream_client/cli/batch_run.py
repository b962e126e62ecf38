"""One run over a batch file: which jobs, which of them again, and the counts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from thinkstream_client.batch import BatchJob
from thinkstream_client.core.compose import BatchItem
from thinkstream_client.core.results import BatchResult
from thinkstream_client.errors import ResultExpired

_SHOWN_FAILURES = 3


class Start(Protocol):
    """Makes a batch of items under an id."""

    def __call__(self, items: Sequence[BatchItem], /, *, id: str) -> BatchJob:  # noqa: D102
        ...


class BatchRun:
    """Runs items of a file.

    The same file finds the jobs of a former run and takes up their results. Those whose result has been
    removed meanwhile are submitted once more.

    Args:
        start: Makes a batch.
        lines: The file; its content is the batch's name.

    Attributes:
        num_done: Items that brought a result.
        num_failed: Items that brought an error.
        first_failures: The first few of them.
    """

    def __init__(self, start: Start, lines: Sequence[str]) -> None:
        digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
        self._start, self._id = start, f"batch-{digest[:16]}"
        self._started_s = time.monotonic()
        self._job: BatchJob | None = None
        self._former_tokens = 0
        self.num_done = self.num_failed = 0
        self.first_failures: list[BatchResult] = []

    @property
    def num_tokens(self) -> int:
        """Tokens that have come."""
        return self._former_tokens + (self._job.progress.tokens if self._job else 0)

    @property
    def elapsed_s(self) -> float:
        """Time since the start, above 0."""
        return max(time.monotonic() - self._started_s, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second since the start."""
        return self.num_tokens / self.elapsed_s

    def results(self, items: Sequence[BatchItem]) -> Iterator[BatchResult]:
        """Runs items and yields their results as they end."""
        num_runs = 0
        while items:
            num_runs += 1
            self._job = self._start(items, id=self._id if num_runs == 1 else f"{self._id}-{num_runs}")
            expired: list[BatchItem] = []
            for result in self._job.results():
                if isinstance(result.error, ResultExpired):
                    expired.append(result.item)
                    continue
                self._count(result)
                yield result
            self._former_tokens, self._job, items = self.num_tokens, None, expired

    def _count(self, result: BatchResult) -> None:
        if result.error is None:
            self.num_done += 1
            return
        self.num_failed += 1
        if len(self.first_failures) < _SHOWN_FAILURES:
            self.first_failures.append(result)
