"""What commands print: tokens as they come, a result, JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from typing import Any

from rich.console import Console

from thinkstream_client.job import TokenStream
from thinkstream_client.records import Finish
from thinkstream_client.results import JobResult

console = Console()
notes = Console(stderr=True, style="dim", highlight=False)
"""For what is not the answer, so that a pipe carries the answer alone."""


def print_json(value: object) -> None:
    """Prints a value, records as objects, on one line."""
    print(json.dumps(value, default=_plain, ensure_ascii=False))


def write_text(text: str) -> None:
    """Prints a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_stream(stream: TokenStream) -> Finish | None:
    """Prints a job's text as it comes and returns its end."""
    for chunk in stream:
        write_text(chunk.text)
    write_text("\n")
    return stream.finish


def describe(finish: Finish | None) -> str:
    """Returns one line about how a job ended: reason, tokens, times."""
    if finish is None:
        return "no end was read"
    usage, timings = finish.usage, finish.timings
    rate = f", {usage.completion_tokens / timings.decode_ms * 1000:.0f} tokens/s" if timings.decode_ms else ""
    return (
        f"{finish.reason}: {usage.prompt_tokens} + {usage.completion_tokens} tokens, "
        f"first after {timings.first_token_ms} ms{rate}"
    )


def result_object(result: JobResult) -> dict[str, Any]:
    """Returns a result as a JSON object."""
    return dataclasses.asdict(result)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    raise TypeError(f"{type(value).__name__} is not JSON")
