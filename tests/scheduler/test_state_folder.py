"""Who holds the state folder, and the id of its service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thinkstream_client.discovery import STATE_DIR_VARIABLE
from thinkstream_client.errors import ConfigError, ServiceUnavailable
from thinkstream_scheduler import processes
from thinkstream_scheduler.state_folder import holder, only_one, service_id

HOLD = """
import sys
from thinkstream_scheduler.state_folder import only_one
with only_one(*map(int, sys.argv[1:])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    return tmp_path


def test_who_holds_it_is_known_from_the_start_to_the_end(folder: Path) -> None:
    assert holder() is None
    with only_one():
        mark = holder()
        assert mark is not None
        assert (mark.pid, mark.start_time) == (os.getpid(), processes.start_time(os.getpid()))
        with pytest.raises(ServiceUnavailable, match=rf"already \(pid {os.getpid()}\)"), only_one():
            pass
        assert holder() == mark
    assert holder() is None
    with only_one():
        pass


def test_one_that_was_killed_holds_nothing(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        mark = holder()
        assert mark is not None
        assert mark.pid == other.pid
        other.kill()
    assert (folder / "up.lock").read_text()
    assert holder() is None
    with only_one():
        pass


def test_a_child_holds_it_on_where_its_parent_lets_go(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with only_one() as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(lock,), text=True,
        )  # fmt: skip
        mark = holder()
        assert mark is not None
        assert child.stdout is not None
        child.stdout.readline()
    mark = holder()
    assert mark is not None
    assert mark.pid == child.pid
    with pytest.raises(ServiceUnavailable, match=f"pid {child.pid}"), only_one():
        pass
    child.communicate("\n")
    assert holder() is None
    with only_one():
        pass


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"7", b"\xff", b'{"pid": "x"}', b'{"pid": 1, "start_time": null}']
)
def test_a_lock_file_that_names_nobody_is_held_by_nobody(folder: Path, text: bytes) -> None:
    (folder / "up.lock").write_bytes(text)
    assert holder() is None


def test_the_id_stays_the_same(folder: Path) -> None:
    made = service_id()
    assert made == service_id() == (folder / "service-id").read_text().strip()


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff\xfe", b"f00d", b"a b"])
def test_an_id_that_a_full_disk_or_somebody_broke_is_made_anew(folder: Path, text: bytes) -> None:
    (folder / "service-id").write_bytes(text)
    made = service_id()
    assert len(made) == 8
    assert made == service_id()


def test_an_id_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "service-id").mkdir()
    with pytest.raises(ConfigError, match=r"service-id: Is a directory"):
        service_id()
