"""The process of `thinkstream up`: starts what is asked for, serves until a signal, leaves nothing behind.

It owns the embedded server and a Ray of its own, which end with it however it ends. Knows no terminal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

from thinkstream_client.discovery import ServiceState, read_state, remove_state, state_dir, write_state
from thinkstream_client.errors import ServiceUnavailable

from .config import ray_namespace
from .embedded import EmbeddedServer
from .launch import Service, start_service
from .leftovers import end_processes, end_remote_actors
from .processes import boot_id, marked
from .state_folder import service_id
from .stop_signals import StopSignals
from .up_arguments import UpArguments

logger = logging.getLogger(__name__)

MAIN_PROCESS = "service"
"""The part under which the state file names the process that serves."""

_DATA_FOLDER = "data"
_WATCH_S = 0.1


def serve(arguments: UpArguments, announce: Callable[[], None]) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP, then drains. The caller holds the state folder.

    Args:
        arguments: What to serve; looked through before anything is started.
        announce: Called once the service is ready and the state file tells of it.

    Raises:
        ConfigError: Something given cannot be used, the state folder neither.
        ServiceUnavailable: A part does not work, or the embedded server has ended.
        KeyboardInterrupt: A signal came before the service was ready.
    """
    with StopSignals() as signals, contextlib.ExitStack() as cleanup:
        checked = arguments.checked()
        former = _former()
        server = None
        url = arguments.redis_url
        if url is None:
            server = EmbeddedServer(state_dir() / _DATA_FOLDER)
            cleanup.callback(server.stop)
            server.start(signals.check)
            url = server.url
        redis = checked.redis_settings(url)
        own_id = service_id()
        ray = (arguments.ray_address or "", ray_namespace(redis, own_id))
        if (former.ray_address, former.ray_namespace) != ray:
            end_remote_actors(former)
        service = start_service(checked.service_options(redis, own_id), signals.check)
        cleanup.callback(remove_state)
        cleanup.callback(_end, service, server, arguments.drain_timeout_s)
        pids = {MAIN_PROCESS: os.getpid(), "redis": server.pid if server is not None else 0}
        if arguments.ray_address is None:  # else its actors may run on any machine
            pids.update(service.pids)
        write_state(
            ServiceState(
                url=redis.url,
                namespace=redis.namespace,
                processes=marked(pids),
                boot_id=boot_id(),
                ray_address=ray[0],
                ray_namespace=ray[1],
                model=arguments.model,
            )
        )
        announce()
        with contextlib.suppress(KeyboardInterrupt):
            _watch(server, signals.check)


def _end(service: Service, server: EmbeddedServer | None, drain_timeout_s: float) -> None:
    if server is not None and not server.is_running:
        service.kill()  # nothing can be given back any more: the leases do that when it runs again
        return
    logger.info("ending; running jobs may go on for %g s", drain_timeout_s)
    service.stop(drain_timeout_s=drain_timeout_s)


def _former() -> ServiceState:
    """What a service that was killed has told of itself; what is left of it on this machine is ended."""
    state = read_state()
    if state is None:
        return ServiceState(url="")
    end_processes(state)
    if not state.ray_address:
        remove_state()
    return state


def _watch(server: EmbeddedServer | None, checkpoint: Callable[[], None]) -> None:
    while True:
        checkpoint()
        time.sleep(_WATCH_S)
        if server is not None and not server.is_running:
            raise ServiceUnavailable(f"the embedded server has ended; its log lies in {server.folder}")
