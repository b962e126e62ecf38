"""The commands that start and end services: `up`, `down`, `demo`. Found through an entry point.

What they start is imported when they run: a help text needs neither Ray nor torch. Errors are raised, and
become a line and a code where all commands are run.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from thinkstream_client.discovery import read_state

if TYPE_CHECKING:
    from .serve import UpOptions

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", re.IGNORECASE)
_EXIT_JOB = 3  # what the command line gives for a job that ended without what was asked for


def num_bytes(text: str) -> int:
    """Reads a size: a number and B, KiB, MiB, GiB or TiB; bare numbers are bytes.

    Raises:
        typer.BadParameter: It is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"got {text!r}, allowed: a number and KiB, MiB, GiB or TiB, as in 8GiB")
    return int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))


def register(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    app.command()(up)
    app.command()(down)
    app.command()(demo)


def up(
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A running Redis or Valkey: redis://..., rediss://..., "
            "redis+sentinel://HOST:PORT,.../SERVICE, redis+cluster://HOST:PORT,...; default: our own.",
        ),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Partitions of a new namespace; default: 16 in a Cluster, else 1."
        ),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running Ray cluster; default: our own.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A checkpoint's folder, `demo`, or `random:CONFIG` for random weights.")
    ] = "demo",
    replicas: Annotated[int, typer.Option(min=1, max=1024, help="Replicas to hold.")] = 1,
    slots: Annotated[int, typer.Option(min=1, help="Jobs at once of one replica.")] = 32,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16; default: float32 on a CPU, else the checkpoint's."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and result; default: the model's limit.")
    ] = None,
    kv_memory: Annotated[
        int | None,
        typer.Option(
            parser=num_bytes,
            metavar="SIZE",
            help="Memory of a replica for keys and values, as in 8GiB; default: what is free on a GPU, "
            "a quarter of it on a CPU.",
        ),
    ] = None,
    lease: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds that a replica may be silent before others get its jobs; a step must take "
            "less than half of it.",
        ),
    ] = 5.0,
    step_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of one step, at least the slots; default: what a lease has room for."
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="First part of every key; one serves one model.")] = "ts",
    drain: Annotated[float, typer.Option(min=0, help="Seconds that running jobs get at the end.")] = 10.0,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
) -> None:
    """Start the service on this machine and serve until Ctrl-C.

    Example: thinkstream up --replicas 2 --detach
    """
    from .serve import UpOptions, serve

    began_s = time.monotonic()
    options = UpOptions(
        redis_url=redis,
        num_partitions=partitions,
        namespace=namespace,
        ray_address=ray,
        model=model,
        num_replicas=replicas,
        slots=slots,
        device=device,
        dtype=dtype,
        max_context=max_context,
        kv_memory_bytes=kv_memory,
        lease_ms=round(lease * 1e3),
        step_tokens=step_tokens,
        drain_timeout_s=drain,
    )
    if detach:
        from .background import start_detached

        start_detached(options)
        _announce(options, began_s, "`thinkstream down`")
    else:
        serve(options, lambda: _announce(options, began_s, "Ctrl-C"))


def down(
    timeout: Annotated[float, typer.Option(min=0, help="Seconds until what still runs is killed.")] = 60.0,
) -> None:
    """End the service that `up` started on this machine; jobs stay in its queue.

    Example: thinkstream down
    """
    from .background import stop_service

    stopped = stop_service(timeout)
    typer.echo("the service has ended" if stopped else "no service runs here")


def demo() -> None:
    """Show everything at work: two replicas of a small model answer in English and in Russian.

    Starts all it needs, in a temporary folder, and leaves nothing behind.

    Example: thinkstream demo
    """
    from .demo import run_demo

    if not run_demo():
        raise typer.Exit(_EXIT_JOB)


def _announce(options: UpOptions, began_s: float, how_to_end: str) -> None:
    from thinkstream_client.settings import RedisSettings

    state = read_state()
    assert state is not None  # it was written before anybody is told
    many = "s" if options.num_replicas != 1 else ""
    typer.echo(
        f"serving {state.model} with {options.num_replicas} replica{many} "
        f"on {RedisSettings(url=state.url).masked_url} (namespace {state.namespace}), "
        f"ready after {time.monotonic() - began_s:.1f} s; end it with {how_to_end}"
    )
