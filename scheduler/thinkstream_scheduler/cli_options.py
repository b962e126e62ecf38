"""The options of `up`, each with its help text. What they come to is said by ``UpArguments``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated

import typer

from thinkstream_client.cli.options import FLAG, integer
from thinkstream_client.errors import shown
from thinkstream_client.protocol.session_calls import MAX_LEASE_MS
from thinkstream_workers.config import MIN_LEASE_MS
from thinkstream_workers.engine_config import MAX_CONTEXT, MAX_KV_BYTES, MAX_SLOTS, MAX_STEP_TOKENS

from .config import MAX_WAIT_S

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", re.IGNORECASE)


def num_bytes(text: str) -> int:
    """Reads a size: a number and B, KiB, MiB, GiB or TiB; bare numbers are bytes.

    Raises:
        typer.BadParameter: It is none, or more than any machine has.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"got {text!r}, allowed: a number and KiB, MiB, GiB or TiB, as in 8GiB")
    size = float(found[1]) * 1024.0 ** " KMGT".index((found[2] or " ").upper())
    if size > MAX_KV_BYTES:
        raise typer.BadParameter(f"got {text!r}, allowed: at most {MAX_KV_BYTES >> 40}TiB")
    return int(size)


def _seconds(low: float, high: float) -> Callable[[str], float]:
    """Returns a parser of numbers in a range, whose errors name it and what was given."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # what is no number neither
            raise typer.BadParameter(f"got {shown(text)}, allowed: a number in [{low:g}, {high:g}]")
        return value

    return parse


RedisUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A running Redis or Valkey: redis://..., rediss://..., "
        "redis+sentinel://HOST:PORT,.../SERVICE, redis+cluster://HOST:PORT,...; default: our own.",
    ),
]
Partitions = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        parser=integer(1, 1024),
        help="Partitions of a new namespace; default: 16 in a Cluster, else 1.",
    ),
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster, HOST:PORT; default: our own.")
]
Model = Annotated[
    str, typer.Option(help="A checkpoint's folder, `demo`, or `random:CONFIG` for random weights.")
]
Replicas = Annotated[int, typer.Option(metavar="INT", parser=integer(1, 1024), help="Replicas to hold.")]
Slots = Annotated[
    int, typer.Option(metavar="INT", parser=integer(1, MAX_SLOTS), help="Jobs at once of one replica.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16; default: float32 on a CPU, else the checkpoint's."),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        parser=integer(2, MAX_CONTEXT),
        help="Tokens of prompt and result; default: the model's limit.",
    ),
]
KvMemory = Annotated[
    int | None,
    typer.Option(
        parser=num_bytes,
        metavar="SIZE",
        help="Memory of a replica for keys and values, as in 8GiB; default: what is free on a GPU, "
        "a quarter of it on a CPU.",
    ),
]
Lease = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        parser=_seconds(MIN_LEASE_MS / 1e3, MAX_LEASE_MS / 1e3),
        help="Seconds that a replica may be silent before others get its jobs; a step must take "
        "less than half of it.",
    ),
]
StepTokens = Annotated[
    int | None,
    typer.Option(
        metavar="INT",
        parser=integer(1, MAX_STEP_TOKENS),
        help="Tokens of one step, at least the slots; default: what a lease has room for.",
    ),
]
Namespace = Annotated[str, typer.Option(help="First part of every key; one serves one model.")]
Drain = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", parser=_seconds(0, MAX_WAIT_S), help="Seconds that running jobs get at the end."
    ),
]
Detach = Annotated[bool, typer.Option("--detach", metavar=FLAG, help="Run in the background.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", metavar=FLAG, help="Show on the terminal all that else goes to the log, up.log."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", parser=_seconds(0, MAX_WAIT_S), help="Seconds until what still runs is killed."
    ),
]
