"""What a service left behind that was killed: processes by their marks, actors by a namespace of their own.

Ends nothing else: a process whose id belongs to another by now is left alone, and so is every actor that
another service has in the same Ray cluster.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

from thinkstream_client.discovery import ServiceState
from thinkstream_client.errors import ServiceUnavailable

from . import processes

logger = logging.getLogger(__name__)

_TERM_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0
_POLL_S = 0.1


def end_processes(state: ServiceState, *parts: str, timeout_s: float = _TERM_TIMEOUT_S) -> None:
    """Ends processes of a service on this machine.

    Args:
        state: What the service wrote about itself.
        parts: Which of them; none named means all.
        timeout_s: How long they may take before they are killed.
    """
    if state.boot_id != processes.boot_id():
        return
    marks = [mark for part, mark in state.processes.items() if part in parts or not parts]
    processes.end({mark.pid: mark.start_time for mark in marks}, timeout_s=timeout_s)


def end_remote_actors(state: ServiceState) -> None:
    """Ends the actors of a service in a Ray cluster that is not its own; does nothing where it had its own.

    A cluster that cannot be reached is passed over: if it has ended, so have they.
    """
    if not state.ray_address:
        return
    from .ray_runtime import RayRuntime

    try:
        runtime = RayRuntime(address=state.ray_address, show_logs=False)
    except ServiceUnavailable as error:
        logger.warning("actors of the former service may be left: %s", error)
        return
    try:
        end_actors(state.ray_namespace)
    finally:
        runtime.close()


def end_actors(namespace: str) -> int:
    """Ends every named actor of a Ray namespace and returns how many there were; Ray is connected.

    Raises:
        ServiceUnavailable: Some do not end.
    """
    import ray

    num_ended = 0
    until_s = time.monotonic() + _KILL_TIMEOUT_S
    while names := _actors(namespace):
        if time.monotonic() > until_s:
            raise ServiceUnavailable(f"Ray does not end the actors {', '.join(names)} of {namespace}")
        for name in names:
            # Again and again: a scheduler that is ending may have started another replica.
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
        num_ended = max(num_ended, len(names))
        time.sleep(_POLL_S)
    return num_ended


def _actors(namespace: str) -> list[str]:
    from ray.util import list_named_actors

    found: Any = list_named_actors(all_namespaces=True)
    return sorted(one["name"] for one in found if one["namespace"] == namespace)
