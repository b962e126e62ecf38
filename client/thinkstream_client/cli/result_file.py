"""The file that a batch appends its results to: whole lines, each id once, whatever ended the run before."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

from thinkstream_client.errors import ConfigError
from thinkstream_client.files.jsonl import answered_ids

_BEGIN = b'{"id": "batch_req_'  # of every result line


class ResultFile:
    """A result file, open for one run alone.

    A line that a crash left torn is cut off. A file that never held results is left as it is: another one
    was meant.

    Args:
        path: Where it is; made if missing.

    Attributes:
        answered: Ids whose results are there.

    Raises:
        ConfigError: It cannot be written, another run writes it, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            is_kept = path.is_file() or not path.exists()  # a pipe or a device has nothing to find again
            self._file = path.open("a+b" if is_kept else "ab")
        except OSError as error:
            raise self._refusal(error) from error
        try:
            self._lock()
            self.answered: set[str] = self._repair() if is_kept else set()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, `append` has told
            self._file.close()

    def append(self, line: str) -> None:
        """Appends a line and hands it to the system.

        Raises:
            ConfigError: It cannot be written: the disk is full.
        """
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self._path}: another run is writing it") from None
        except OSError:
            return  # a file system without locks

    def _repair(self) -> set[str]:
        ids: set[str] = set()
        num_bytes, rest, has_lines = 0, b"", False
        try:
            self._file.seek(0)
            for line in self._file:
                if not line.endswith(b"\n"):
                    rest = line
                    break
                num_bytes += len(line)
                has_lines = has_lines or bool(line.strip())
                ids |= _ids(line)
            if (has_lines and not ids) or not (_ids(rest) or _is_torn(rest)):
                raise ConfigError(f"{self._path}: it holds something else than results; name another file")
            if _ids(rest):
                self._file.write(b"\n")  # all but the line break had come
                self._file.flush()
            elif rest:
                self._file.truncate(num_bytes)
        except OSError as error:
            raise self._refusal(error) from error
        return ids | _ids(rest)

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: {error.strerror or error}")


def _ids(line: bytes) -> set[str]:
    return answered_ids([line.decode("utf-8", "replace")])


def _is_torn(rest: bytes) -> bool:
    return rest.startswith(_BEGIN) or _BEGIN.startswith(rest)
