from __future__ import annotations

import stat
from pathlib import Path

import pytest

from thinkstream_client.discovery import (
    ProcessMark,
    ServiceState,
    find_service,
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
    "text", ["", "[]", "{}", '{"url": "redis://a:1", "namespace": "ts", "processes": 3}']
)
def test_foreign_file_is_named(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "service.json").write_text(text)
    with pytest.raises(ConfigError, match=r"service\.json"):
        find_service()


def test_bad_url_shows_no_password() -> None:
    with pytest.raises(ConfigError) as caught:
        find_service("http://user:secret@host")
    assert "secret" not in str(caught.value)
