"""Ray as this service uses it: quiet, small, and without a trace once it is shut down.

Knows nothing of jobs and replicas. ``ray`` itself is imported at `connect`, behind the settings that it
reads from the environment at import.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from thinkstream_client.errors import ServiceUnavailable

_OBJECT_STORE_BYTES = 100 << 20  # only control messages pass through it; Ray's least is 75 MiB
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_DISABLE_DASHBOARD_LOG_INFO": "1",
    "RAY_DEDUP_LOGS": "0",
}


def connect(*, address: str | None, folder: Path | None, namespace: str, show_logs: bool) -> None:
    """Connects this process to a Ray cluster, or starts one that lives as long as this process.

    Args:
        address: A running cluster; None starts one of our own on this machine, for this machine alone.
        folder: Where a cluster of our own keeps sockets and logs; None is Ray's own choice. Short: the
            path of a socket has 107 characters at most.
        namespace: Ray namespace of names looked up without one.
        show_logs: Whether what actors write appears on our stderr.

    Raises:
        ServiceUnavailable: Ray cannot be reached or started.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        # Ray listens on all interfaces: a token that only our own processes know shuts others out.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder) if folder is not None else None,
        }
    try:
        ray.init(
            namespace=namespace,
            logging_level=logging.ERROR,
            log_to_driver=show_logs,
            **options,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        where = f"at {address}" if address else "on this machine"
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ServiceUnavailable(f"Ray {where} does not work: {first_line}") from error


def disconnect() -> None:
    """Leaves the cluster; one that `connect` started ends with all its processes."""
    import ray

    ray.shutdown()
