"""The commands that start and end services: `up`, `down`, `demo`. Found through an entry point.

What they start is imported when they run: a help text needs neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from thinkstream_client.errors import ConfigError, RequestError, ThinkstreamError

if TYPE_CHECKING:
    from thinkstream_client.discovery import ServiceState

EXIT_SERVICE = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130


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
    namespace: Annotated[str, typer.Option(help="First part of every key; one serves one model.")] = "ts",
    drain: Annotated[float, typer.Option(min=0, help="Seconds that running jobs get at the end.")] = 10.0,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
) -> None:
    """Start the service on this machine and serve until Ctrl-C.

    Example: thinkstream up --replicas 2 --detach
    """
    with one_line_errors():
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
            drain_timeout_s=drain,
        )
        if detach:
            from .background import start_detached

            _announce(start_detached(options), began_s, "`thinkstream down`")
        else:
            serve(options, lambda state: _announce(state, began_s, "Ctrl-C"))


def down(
    timeout: Annotated[float, typer.Option(min=0, help="Seconds until what still runs is killed.")] = 60.0,
) -> None:
    """End the service that `up` started on this machine; jobs stay in its queue.

    Example: thinkstream down
    """
    with one_line_errors():
        from .background import stop_service

        stopped = stop_service(timeout)
    typer.echo("the service has ended" if stopped else "no service runs here")


def demo() -> None:
    """Show everything at work: two replicas of a small model answer in English and in Russian.

    Starts all it needs, in a temporary folder, and leaves nothing behind.

    Example: thinkstream demo
    """
    with one_line_errors():
        from .demo import run_demo

        run_demo()


@contextlib.contextmanager
def one_line_errors() -> Generator[None]:
    """Says what is wrong in one line on stderr, and ends with the code of its kind."""
    try:
        yield
    except (ConfigError, RequestError) as error:
        _fail(str(error), EXIT_CONFIG)
    except ThinkstreamError as error:
        _fail(str(error), EXIT_SERVICE)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def _announce(state: ServiceState, began_s: float, how_to_end: str) -> None:
    from thinkstream_client.settings import RedisSettings

    num_replicas = sum(part.startswith("replica-") for part in state.pids)
    typer.echo(
        f"serving {state.model} with {num_replicas} replica{'s' if num_replicas != 1 else ''} "
        f"on {RedisSettings(url=state.url).masked_url} (namespace {state.namespace}), "
        f"ready after {time.monotonic() - began_s:.1f} s; end it with {how_to_end}"
    )
