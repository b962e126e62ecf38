"""What a reader received, written down as it came.

One JSON record per line, each written by one system call on a file opened for appending and never synced: it
outlives the process, which is what is killed here. A line that was cut off by the kill is not there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["up", "begin", "chunk", "fork", "cancel", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line; what is empty or 0 is left out of it.

    Attributes:
        kind: What happened: the process started, a job was begun, tokens came, Redis went back, a cancel
            returned, a job ended.
        job: The job's number.
        index: Tokens received up to here, of a fork those that still hold, of a cancel those that the end
            names which stood there when it had returned.
        ids: The tokens of a chunk.
        crc: Over all ids of the job up to here.
        text: The text of a chunk.
        reason: Of an end or a cancel.
        at_s: When, on the machine's monotonic clock.
    """

    kind: Kind
    job: int = 0
    index: int = 0
    ids: tuple[int, ...] = ()
    crc: int = 0
    text: str = ""
    reason: str = ""
    at_s: float = 0.0


class Journal:
    """A reader's file, open for writing.

    Args:
        path: The file; its last line is dropped if it is not whole.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        content = path.read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def write(self, record: Record) -> None:
        """Adds a record, stamped with the time."""
        stamped = {**asdict(record), "at_s": round(time.monotonic(), 4)}
        line = json.dumps({name: value for name, value in stamped.items() if value}, ensure_ascii=False)
        os.write(self._file, line.encode() + b"\n")


def read_journal(path: Path) -> Iterator[Record]:
    """The records of a file, oldest first; none where there is no file yet."""
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    fields: dict[str, Any] = json.loads(line)
                    fields["ids"] = tuple(fields.get("ids", ()))
                    yield Record(**fields)
