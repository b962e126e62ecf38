"""The commands that start and end services: `up`, `down`, `demo`. Found through an entry point.

What they start is imported when they run: a help text needs neither Ray nor torch. Errors are raised, and
become a line and a code where all commands are run.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

import typer

from thinkstream_client.cli.extra import check_extra
from thinkstream_client.discovery import read_state

from . import cli_options as options

if TYPE_CHECKING:
    from .up_arguments import UpArguments

_EXIT_JOB = 3  # what the command line gives for a job that ended without what was asked for


def register(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    app.command()(up)
    app.command()(down)
    app.command()(demo)


def up(
    redis: options.RedisUrl = None,
    partitions: options.Partitions = None,
    ray: options.RayAddress = None,
    model: options.Model = "demo",
    replicas: options.Replicas = 1,
    slots: options.Slots = 32,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    max_context: options.MaxContext = None,
    kv_memory: options.KvMemory = None,
    lease: options.Lease = 5.0,
    step_tokens: options.StepTokens = None,
    namespace: options.Namespace = "ts",
    drain: options.Drain = 10.0,
    detach: options.Detach = False,
    verbose: options.Verbose = False,
) -> None:
    """Starts the service on this machine and serves until Ctrl-C.

    Example: thinkstream up --replicas 2 --detach
    """
    check_extra()
    from .up_arguments import UpArguments

    arguments = UpArguments(
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
    _serve(arguments, detach=detach, verbose=verbose)


def down(timeout: options.Timeout = 60.0) -> None:
    """Ends the service that `up` started on this machine; jobs stay in its queue.

    Example: thinkstream down
    """
    from .background import stop_service

    stopped = stop_service(timeout)
    typer.echo("the service has ended" if stopped else "no service runs here")


def demo() -> None:
    """Shows everything at work: two replicas of a small model answer in English and in Russian.

    It starts all it needs, in a temporary folder, and leaves nothing behind.

    Example: thinkstream demo
    """
    check_extra()
    from .demo import run_demo

    if not run_demo():
        raise typer.Exit(_EXIT_JOB)


def _serve(arguments: UpArguments, *, detach: bool, verbose: bool) -> None:
    began_s = time.monotonic()
    if detach:
        from .background import start_detached

        start_detached(arguments)
        _announce(arguments, began_s, "`thinkstream down`", sys.stdout)
    else:
        from .foreground import serve_here

        serve_here(
            arguments,
            lambda terminal: _announce(arguments, began_s, "Ctrl-C", terminal),
            is_verbose=verbose,
        )


def _announce(arguments: UpArguments, began_s: float, how_to_end: str, terminal: TextIO) -> None:
    from thinkstream_client.settings import RedisSettings

    state = read_state()
    assert state is not None  # it was written before anybody is told
    many = "s" if arguments.num_replicas != 1 else ""
    typer.echo(
        f"serving {state.model} with {arguments.num_replicas} replica{many} "
        f"on {RedisSettings(url=state.url).masked_url} (namespace {state.namespace}), "
        f"ready after {time.monotonic() - began_s:.1f} s; end it with {how_to_end}",
        file=terminal,
    )
