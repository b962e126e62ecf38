"""Where the service is: an argument, the environment, or the state file that ``thinkstream up`` wrote.

The state file is a small JSON object, readable by its owner alone because the URL may carry a password.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from .errors import ConfigError, ServiceUnavailable
from .settings import RedisSettings

URL_VARIABLE = "THINKSTREAM_URL"
STATE_DIR_VARIABLE = "THINKSTREAM_STATE_DIR"
STATE_FILE = "service.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """What tells a process from every other that ever has its id between two boots.

    Attributes:
        pid: Its id.
        start_time: When it started, in the kernel's ticks since the boot.
    """

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """A service that was started on this machine.

    Attributes:
        url: Its Redis.
        namespace: First part of its keys.
        processes: What it consists of on this machine, by part (``redis``, ``scheduler``, ``ray-0``).
        boot_id: The kernel's name for the boot within which the processes run.
        ray_address: The Ray cluster its actors live in; empty where a local one was started.
        ray_namespace: Where its actors have their names in that cluster.
        model: What it serves, as given to ``up``.
    """

    url: str
    namespace: str = "ts"
    processes: Mapping[str, ProcessMark] = field(default_factory=dict[str, ProcessMark])
    boot_id: str = ""
    ray_address: str = ""
    ray_namespace: str = ""
    model: str = ""


def state_dir() -> Path:
    """Returns the state folder: ``$THINKSTREAM_STATE_DIR``, else ``~/.local/state/thinkstream``."""
    given = os.environ.get(STATE_DIR_VARIABLE)
    return Path(given) if given else Path.home() / ".local" / "state" / "thinkstream"


def write_state(state: ServiceState, folder: Path | None = None) -> Path:
    """Writes the state file in one step, with mode 0600, and returns its path."""
    folder = folder or state_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=STATE_FILE)  # mkstemp gives 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file, indent=1)
    path = folder / STATE_FILE
    os.replace(temporary, path)
    return path


def read_state(folder: Path | None = None) -> ServiceState | None:
    """Returns the service that the state file names, or None where there is no file.

    Raises:
        ConfigError: The file is not one of ours.
    """
    path = (folder or state_dir()) / STATE_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    try:
        return _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is not a state file of thinkstream; remove it") from error


def remove_state(folder: Path | None = None) -> None:
    """Removes the state file if there is one."""
    ((folder or state_dir()) / STATE_FILE).unlink(missing_ok=True)


def find_service(url: str | None = None, namespace: str | None = None) -> RedisSettings:
    """Returns how to reach the service.

    Args:
        url: Wins over everything else.
        namespace: Wins over the state file's; ``ts`` where neither names one.

    Raises:
        ServiceUnavailable: Nothing says where the service is.
        ConfigError: The URL is not one of Redis, or the state file is broken.
    """
    given = url or os.environ.get(URL_VARIABLE)
    if given:
        return RedisSettings(url=given, namespace=namespace or "ts")
    state = read_state()
    if state is None:
        raise ServiceUnavailable(
            f"no service is known: give a URL, set {URL_VARIABLE}, or start one with `thinkstream up`"
        )
    return RedisSettings(url=state.url, namespace=namespace or state.namespace)


def _parse(value: Any) -> ServiceState:
    known = cast("dict[str, Any]", value)
    return ServiceState(
        url=str(known["url"]),
        namespace=str(known["namespace"]),
        processes={
            str(part): ProcessMark(pid=int(mark["pid"]), start_time=int(mark["start_time"]))
            for part, mark in known["processes"].items()
        },
        boot_id=str(known["boot_id"]),
        ray_address=str(known["ray_address"]),
        ray_namespace=str(known["ray_namespace"]),
        model=str(known["model"]),
    )
