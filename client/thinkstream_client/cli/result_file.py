"""The file that a batch appends its results to: whole lines, each id once, whatever ended the run before."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from thinkstream_client.errors import ConfigError
from thinkstream_client.files.jsonl import LINE_ID, ResultRow, parse_result

_BEGIN = b'{"id": "batch_req_'  # of every result line


class ResultFile:
    """A result file, open for one run alone.

    A line that a crash left torn is cut off. A file that never held results is left as it is: another one
    was meant.

    Args:
        path: Where it is; made if missing.

    Attributes:
        answered: Ids whose results are there, errors of jobs that ran among them.
        failed: Those of them whose results are errors.
        refused: Ids of requests that were wrong, so that nothing ran.

    Raises:
        ConfigError: It cannot be written, another run writes it, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.answered: set[str] = set()
        self.failed: set[str] = set()
        self.refused: set[str] = set()
        try:
            is_kept = path.is_file() or not path.exists()  # a pipe or a device has nothing to find again
            self._file: BinaryIO = path.open("a+b" if is_kept else "ab")
        except OSError as error:
            raise self._refusal(error) from error
        try:
            self._lock()
            if is_kept:
                self._repair()
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

    def forget_refusals(self, ids: Collection[str]) -> None:
        """Takes out the refusals of some ids, of ids with an answer and of lines without an id.

        The file is replaced in one step: a crash leaves the old one or the new one.

        Args:
            ids: Whose requests are tried again, and get other rows.

        Raises:
            ConfigError: It cannot be written; the old one stays.
        """
        again = {*ids, *self.answered}
        gone = {name for name in self.refused if name in again or name.startswith(LINE_ID)}
        if not gone:
            return
        try:
            self._replace(gone)
        except OSError as error:
            raise self._refusal(error) from error
        self.refused -= gone

    def _replace(self, gone: Collection[str]) -> None:
        path = self._path.resolve()  # a link stays one
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with contextlib.ExitStack() as cleanup:
            new = os.fdopen(descriptor, "a+b")
            cleanup.callback(new.close)
            cleanup.callback(Path(temporary).unlink, missing_ok=True)
            for line in self._lines():
                row = _row(line)
                if row is None or not row.is_refusal or row.custom_id not in gone:
                    new.write(line)
            new.flush()
            os.fsync(new.fileno())
            shutil.copymode(path, temporary)
            _lock(new)
            os.replace(temporary, path)
            cleanup.pop_all()
        self._file.close()
        self._file = new

    def _lock(self) -> None:
        try:
            _lock(self._file)
            is_ours = self._is_at_path()
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise ConfigError(f"{self._path}: another run is writing it")

    def _is_at_path(self) -> bool:
        # Between our opening it and our lock, another run may have put a new file in its place.
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            return False

    def _repair(self) -> None:
        num_bytes, rest, has_lines, has_rows = 0, b"", False, False
        try:
            for line in self._lines():
                if not line.endswith(b"\n"):
                    rest = line
                    break
                num_bytes += len(line)
                has_lines = has_lines or bool(line.strip())
                has_rows = self._take(line) or has_rows
            if (has_lines and not has_rows) or not (_row(rest) or _is_torn(rest)):
                raise ConfigError(f"{self._path}: it holds something else than results; name another file")
            if self._take(rest):
                self._file.write(b"\n")  # all but the line break had come
                self._file.flush()
            elif rest:
                self._file.truncate(num_bytes)
        except OSError as error:
            raise self._refusal(error) from error

    def _lines(self) -> Iterable[bytes]:
        self._file.seek(0)
        return self._file

    def _take(self, line: bytes) -> bool:
        row = _row(line)
        if row is None:
            return False
        if row.is_refusal:
            self.refused.add(row.custom_id)
            return True
        self.answered.add(row.custom_id)
        (self.failed.add if row.error_code else self.failed.discard)(row.custom_id)
        return True

    def _refusal(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: {error.strerror or error}")


def _lock(file: BinaryIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # a file system without locks


def _row(line: bytes) -> ResultRow | None:
    return parse_result(line.decode("utf-8", "replace"))


def _is_torn(rest: bytes) -> bool:
    return rest.startswith(_BEGIN) or _BEGIN.startswith(rest)
