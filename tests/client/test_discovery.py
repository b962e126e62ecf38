from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from thinkstream_client.discovery import (
    ProcessMark,
    ServiceState,
    find_service,
    made_state_dir,
    read_state,
    remove_state,
    state_dir,
    write_state,
)
from thinkstream_client.errors import ConfigError, ServiceUnavailable

STATE = ServiceState(
    url="redis://:secret@127.0.0.1:7000",
    namespace="mine",
    processes={"redis": ProcessMark(pid=7, start_time=1234)},
    boot_id="f00d",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("THINKSTREAM_URL", raising=False)
    return tmp_path / "state"


def test_state_is_read_as_written_and_private(folder: Path) -> None:
    assert read_state() is None
    path = write_state(STATE)
    assert path.parent == folder == state_dir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_state() == STATE
    remove_state()
    remove_state()
    assert read_state() is None and list(folder.iterdir()) == []


def test_argument_wins_over_variable_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceUnavailable, match="THINKSTREAM_URL"):
        find_service()
    write_state(STATE)
    assert (find_service().url, find_service().namespace) == (STATE.url, "mine")
    assert find_service(namespace="other").namespace == "other"
    monkeypatch.setenv("THINKSTREAM_URL", "redis://host:1")
    assert (find_service().url, find_service().namespace) == ("redis://host:1", "ts")
    assert find_service("redis://host:2").url == "redis://host:2"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"url": "redis://a:1", "namespace": "ts", "processes": 3}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"url": "", "namespace": "", "processes": {"a": {"pid": Infinity, "start_time": 1}}}',
    ],
)
def test_foreign_file_is_named(folder: Path, text: bytes) -> None:
    folder.mkdir()
    (folder / "service.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"service\.json"):
        find_service()


def test_bad_url_shows_no_password() -> None:
    with pytest.raises(ConfigError) as caught:
        find_service("http://user:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "Not a directory"),
        ("file/below", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THINKSTREAM_STATE_DIR", str(tmp_path / name))
    for act in (made_state_dir, lambda: write_state(STATE), read_state, remove_state):
        with pytest.raises(ConfigError, match=rf"{name}.*: {reason}$"):
            act()


def test_without_a_home_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("THINKSTREAM_STATE_DIR")
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(ConfigError, match="THINKSTREAM_STATE_DIR"):
        read_state()


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_state(STATE)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match=r"service\.json: No space left on device$"):
        write_state(replace(STATE, namespace="other"))
    assert read_state() == STATE
    assert [path.name for path in folder.iterdir()] == ["service.json"]
