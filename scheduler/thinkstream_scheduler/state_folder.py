"""The state folder as a service holds it: who does, from the first moment of a start, and what its id is.

What a service that is ready tells of itself is the state file's matter; see ``discovery``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Generator
from io import FileIO
from pathlib import Path
from typing import Any, cast

from thinkstream_client.discovery import (
    ProcessMark,
    made_state_dir,
    naming,
    read_if_there,
    state_dir,
    write_whole,
)
from thinkstream_client.errors import ServiceUnavailable

from . import processes

logger = logging.getLogger(__name__)

_LOCK_FILE = "up.lock"
_ID_FILE = "service-id"
_ID = re.compile(r"[0-9a-f]{8}")


@contextlib.contextmanager
def only_one(inherited: int | None = None) -> Generator[int]:
    """Holds the state folder, and says in its lock file who does: two services would write one data folder.

    Yields the lock's descriptor. A child that inherits it holds the folder with us, and alone when we let go.

    Args:
        inherited: The descriptor, where a parent holds the folder.

    Raises:
        ConfigError: The folder cannot be used.
        ServiceUnavailable: Somebody holds it.
    """
    path = made_state_dir() / _LOCK_FILE
    with contextlib.ExitStack() as cleanup:
        with naming(path):
            file: int | Path = path
            if inherited is not None:
                os.set_inheritable(inherited, False)  # nobody below may hold it after us
                file = inherited
            lock = cleanup.enter_context(open(file, "a+b", buffering=0))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServiceUnavailable(_taken()) from None
            lock.truncate(0)
            lock.write(_encoded_mark())
        cleanup.callback(_unmark, lock)
        yield lock.fileno()


def holder() -> ProcessMark | None:
    """The process of this machine that holds the state folder; None where none does.

    Raises:
        ConfigError: The lock file cannot be read.
    """
    text = read_if_there(state_dir() / _LOCK_FILE)
    if text is None:
        return None
    try:
        found = cast("dict[str, Any]", json.loads(text))
        mark = ProcessMark(pid=int(found["pid"]), start_time=int(found["start_time"]))
        boot = found["boot_id"]
    except (ValueError, TypeError, KeyError):  # of a holder that has just let go, or is just taking hold
        return None
    # One that was killed has left its mark.
    runs = boot == processes.boot_id() and processes.start_time(mark.pid) == mark.start_time
    return mark if runs else None


def service_id() -> str:
    """What tells this folder's service from those of other folders and machines; made where it is missing.

    Raises:
        ConfigError: It can be neither read nor written.
    """
    path = state_dir() / _ID_FILE
    with naming(path), contextlib.suppress(FileNotFoundError):
        found = path.read_text(encoding="ascii", errors="replace").strip()
        if _ID.fullmatch(found):
            return found
        logger.warning("%s holds no id of a service: another is made", path)
    write_whole(path, made := secrets.token_hex(4))
    return made


def _unmark(lock: FileIO) -> None:
    """Takes our mark away; that of a child which holds the folder by now stays."""
    lock.seek(0)
    if lock.read() == _encoded_mark():
        lock.truncate(0)


def _taken() -> str:
    mark = holder()
    where = f" (pid {mark.pid})" if mark is not None else ""
    return f"a service runs here already{where}; end it with `thinkstream down`"


def _encoded_mark() -> bytes:
    pid = os.getpid()
    mark = {"pid": pid, "start_time": processes.start_time(pid), "boot_id": processes.boot_id()}
    return json.dumps(mark).encode()
