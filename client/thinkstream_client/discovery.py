"""Where the service is: an argument, the environment, or the state file that ``thinkstream up`` wrote.

The state file is a small JSON object, readable by its owner alone because the URL may carry a password.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Generator, Mapping
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
    """Returns the state folder: ``$THINKSTREAM_STATE_DIR``, else ``~/.local/state/thinkstream``.

    Raises:
        ConfigError: The variable is not set, and nothing says where the user's home is.
    """
    given = os.environ.get(STATE_DIR_VARIABLE)
    if given:
        return Path(given)
    try:
        return Path.home() / ".local" / "state" / "thinkstream"
    except RuntimeError as error:
        raise ConfigError(f"{error}; set {STATE_DIR_VARIABLE} to a folder") from error


def made_state_dir() -> Path:
    """Returns the state folder, which is made if missing, for its owner alone.

    Raises:
        ConfigError: It is no folder, or cannot be made.
    """
    folder = state_dir()
    with naming(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    return folder


@contextlib.contextmanager
def naming(path: Path) -> Generator[None]:
    """Has what the system says of a path within the block come up as one line that names the path.

    Raises:
        ConfigError: In the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def read_if_there(path: Path) -> bytes | None:
    """Returns what a file holds, or None where there is none.

    Raises:
        ConfigError: It cannot be read.
    """
    with naming(path), contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step, with mode 0600: whoever reads it finds the old text or the new one.

    Raises:
        ConfigError: It cannot be written, the disk is full; the old one stays, and nothing beside it.
    """
    with naming(path), contextlib.ExitStack() as cleanup:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # which gives 0600
        cleanup.callback(Path(temporary).unlink, missing_ok=True)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_state(state: ServiceState) -> Path:
    """Writes the state file in one step, with mode 0600, and returns its path.

    Raises:
        ConfigError: It cannot be written.
    """
    path = made_state_dir() / STATE_FILE
    write_whole(path, json.dumps(asdict(state), indent=1))
    return path


def read_state() -> ServiceState | None:
    """Returns the service that the state file names, or None where there is no file.

    Raises:
        ConfigError: The file is not one of ours, or cannot be read.
    """
    path = state_dir() / STATE_FILE
    text = read_if_there(path)
    if text is None:
        return None
    try:
        return _parse(json.loads(text.decode()))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path} is not a state file of thinkstream; remove it") from error


def remove_state() -> None:
    """Removes the state file if there is one.

    Raises:
        ConfigError: It cannot be removed.
    """
    path = state_dir() / STATE_FILE
    with naming(path):
        path.unlink(missing_ok=True)


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
            f"no service is known: give `--url`, set {URL_VARIABLE}, or start one with `thinkstream up`"
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
