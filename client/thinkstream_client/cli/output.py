"""What commands print: tokens as they come, tables, times, JSON, errors.

The answer goes to stdout, everything about it to stderr, so that a pipe carries the answer alone. Colours
are rich's: none in a pipe, none where ``NO_COLOR`` is set.
"""

from __future__ import annotations

import json
import sys
import time

from rich.console import Console
from rich.table import Table

from thinkstream_client.job import TokenStream
from thinkstream_client.outcome import Finish

console = Console(highlight=False)
notes = Console(stderr=True, style="dim", highlight=False, soft_wrap=True)
"""For what is not the answer."""
_errors = Console(stderr=True, style="red", highlight=False, soft_wrap=True)

_WIDE = 10_000


def print_error(error: object) -> None:
    """Prints an error on one line."""
    _errors.print(f"thinkstream: {' '.join(str(error).split())}", markup=False)


def print_note(text: str) -> None:
    """Prints a remark about the answer."""
    notes.print(text, markup=False)


def counted(number: int, name: str) -> str:
    """Returns a number of things: ``1 dead letter``, ``2 dead letters``."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def print_json(value: object) -> None:
    """Prints a value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(table: Table) -> None:
    """Prints a table: as wide as the terminal, or whole lines where a program reads them."""
    (console if console.is_terminal else Console(highlight=False, width=_WIDE)).print(table)


def write_text(text: str) -> None:
    """Prints a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_stream(stream: TokenStream, told: list[str] | None = None) -> Finish | None:
    """Prints a job's text as it comes and returns its end.

    Args:
        stream: The job's tokens.
        told: What was printed is added here, piece by piece, so that it is known after an error too.
    """
    told = [] if told is None else told
    try:
        for chunk in stream:
            if chunk.text:
                told.append(chunk.text)
                write_text(chunk.text)
    finally:
        if told:
            write_text("\n")
    return stream.finish


def describe(finish: Finish | None) -> str:
    """Returns one line about how a job ended: reason, tokens, times."""
    if finish is None:
        return "no end was read"
    usage, timings = finish.usage, finish.timings
    rate = f", {usage.completion_tokens / timings.decode_ms * 1000:.0f} tokens/s" if timings.decode_ms else ""
    return (
        f"{finish.reason}: {usage.prompt_tokens} prompt + {usage.completion_tokens} answer tokens, "
        f"first after {timings.first_token_ms} ms{rate}"
    )


def local_time(unix_ms: int) -> str:
    """Returns a time of the server as date and time of this machine's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_ms / 1000))


def duration(ms: float) -> str:
    """Returns a duration with its unit: ``35 ms``, ``4.2 s``, ``3 min 20 s``, ``5 h 3 min``."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
