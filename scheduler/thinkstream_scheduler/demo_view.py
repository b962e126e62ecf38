"""How the demo looks: answers as they come, then a table of figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .demo_questions import Question

_MAX_ANSWER_LINES = 3


@dataclass(slots=True)
class DemoJob:
    """One job as the demo has seen it. Times are seconds from the submission of the first job.

    Attributes:
        question: What was asked.
        began_s: When it was submitted.
        text: The answer so far.
        num_tokens: Its tokens so far.
        first_token_s: When the first token came.
        ended_s: When its stream ended.
    """

    question: Question
    began_s: float = 0.0
    text: str = ""
    num_tokens: int = 0
    first_token_s: float | None = None
    ended_s: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether the answer has in it what was expected."""
        return self.question.expected in self.text


def answer(job: DemoJob) -> Text:
    """Question and answer in full; brackets in them are what the model said, and no markup."""
    return Text.assemble("\n", (job.question.text, "bold"), "\n", job.text.strip())


def live_view(jobs: Sequence[DemoJob], num_shown: int, console: Console) -> RenderableType:
    """The first jobs' answers so far, and a line about all."""
    table = Table(expand=True, show_lines=True)
    table.add_column("who", style="dim", no_wrap=True)
    table.add_column("asks", ratio=1)
    table.add_column("the answer as it comes", ratio=2)
    for job in jobs[:num_shown]:
        cursor = "" if job.ended_s is not None else "▌"
        table.add_row(job.question.tenant, Text(job.question.text), _shortened(job.text + cursor, console))
    num_done = sum(job.ended_s is not None for job in jobs)
    num_tokens = sum(job.num_tokens for job in jobs)
    return Group(table, Text(f"{num_done} of {len(jobs)} jobs answered, {num_tokens} tokens streamed"))


def figures(jobs: Sequence[DemoJob], num_replicas: int) -> Table:
    """What the demo did, in numbers."""
    num_tokens = sum(job.num_tokens for job in jobs)
    wall_s = max(job.ended_s or 0.0 for job in jobs)
    waits_ms = [1e3 * (job.first_token_s - job.began_s) for job in jobs if job.first_token_s is not None]
    table = Table(title="what happened", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in (
        ("replicas", f"{num_replicas}"),
        ("tenants", f"{len({job.question.tenant for job in jobs})}"),
        ("jobs streamed", f"{len(jobs)}"),
        ("tokens", f"{num_tokens}"),
        ("seconds", f"{wall_s:.2f}"),
        ("tokens/s", f"{num_tokens / wall_s:.0f}"),
        ("time to first token, median", f"{statistics.median(waits_ms):.0f} ms"),
        ("time to first token, longest", f"{max(waits_ms):.0f} ms"),
    ):
        table.add_row(name, value)
    table.show_header = False
    return table


def _shortened(text: str, console: Console) -> Text:
    """The end of a long answer: the newest words are the ones to watch."""
    longest = max(20, console.width * 5 // 9) * _MAX_ANSWER_LINES
    return Text(text if len(text) <= longest else "…" + text[-longest:])
