from __future__ import annotations

from pathlib import Path

import pytest

from thinkstream_workers.host_memory import free_bytes, total_bytes

MEMINFO = "MemTotal:       16000 kB\nMemFree:          100 kB\nMemAvailable:    8000 kB\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def cgroup(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text("3000000\n")
    (folder / "memory.stat").write_text("anon 1500000\ninactive_file 1000000\n")
    return folder


def test_the_kernel_tells_what_is_available(meminfo: Path, tmp_path: Path) -> None:
    assert free_bytes(meminfo, tmp_path / "none") == 8000 << 10


def test_a_container_may_be_allowed_less_but_its_cached_files_give_way(meminfo: Path, tmp_path: Path) -> None:
    assert free_bytes(meminfo, cgroup(tmp_path, "4000000\n")) == 2_000_000
    assert free_bytes(meminfo, cgroup(tmp_path, "99000000000\n")) == 8000 << 10
    assert free_bytes(meminfo, cgroup(tmp_path, "max\n")) == 8000 << 10
    assert free_bytes(meminfo, cgroup(tmp_path, "1000000\n")) == 0


def test_what_there_is_in_all_is_the_machine_s_or_the_container_s(meminfo: Path, tmp_path: Path) -> None:
    assert total_bytes(meminfo, tmp_path / "none") == 16000 << 10
    assert total_bytes(meminfo, cgroup(tmp_path, "4000000\n")) == 4_000_000
    assert total_bytes(meminfo, cgroup(tmp_path, "max\n")) == 16000 << 10
    assert total_bytes(tmp_path / "none", tmp_path / "none") is None


def test_where_nothing_tells_nothing_is_free(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "none", tmp_path / "none") == 0


def test_this_machine_has_some() -> None:
    assert free_bytes() > 1 << 20
