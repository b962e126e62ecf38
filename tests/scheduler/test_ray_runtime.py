"""How a start of Ray is left in the middle, with a stand-in for Ray: what it leaves, and what is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from thinkstream_client.errors import ServiceUnavailable
from thinkstream_scheduler import processes, ray_runtime
from thinkstream_scheduler.ray_runtime import RayRuntime
from thinkstream_scheduler.stop_signals import StopSignals

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


class FakeRay(types.ModuleType):
    """Starts one process, and another as late as while it is shut down."""

    def __init__(self, at_init: Callable[[], None]) -> None:
        super().__init__("ray")
        self._at_init = at_init
        self.folder = Path()
        self.started: list[subprocess.Popen[bytes]] = []
        self.has_come_up = False

    def init(self, **options: Any) -> None:
        def handle(number: int, frame: object) -> None:
            raise SystemExit(number)

        signal.signal(signal.SIGTERM, handle)
        self.folder = Path(options.get("_temp_dir", self.folder))
        self.start_process()
        self._at_init()
        self.has_come_up = True

    def shutdown(self) -> None:
        self.start_process()

    def start_process(self) -> None:
        code = "import time; time.sleep(60)"
        self.started.append(subprocess.Popen([sys.executable, "-c", code]))


MakeRay = Callable[[Callable[[], None]], FakeRay]


@pytest.fixture
def make_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRay]:
    made: list[FakeRay] = []
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(ray_runtime, "_ENVIRONMENT_ELSEWHERE", {})

    def make(at_init: Callable[[], None]) -> FakeRay:
        made.append(FakeRay(at_init))
        monkeypatch.setitem(sys.modules, "ray", made[-1])
        return made[-1]

    yield make
    for process in (process for one in made for process in one.started):
        process.kill()
        process.wait()


def has_left_nothing(fake: FakeRay) -> bool:
    running = [one.pid for one in fake.started if processes.start_time(one.pid) is not None]
    return not running and not fake.folder.exists() and len(fake.started) == 2


def terminate_us() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_waits_until_ray_has_started(make_ray: MakeRay) -> None:
    fake = make_ray(terminate_us)
    handler, set_handler = signal.getsignal(signal.SIGTERM), signal.signal
    with pytest.raises(KeyboardInterrupt):
        RayRuntime(address=None, show_logs=False)
    assert fake.has_come_up
    assert has_left_nothing(fake)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.signal is set_handler


def test_sigterm_is_not_lost_in_a_start_that_fails(make_ray: MakeRay) -> None:
    def fail() -> None:
        terminate_us()
        raise RuntimeError("the raylet has died")

    fake = make_ray(fail)
    with pytest.raises(KeyboardInterrupt):
        RayRuntime(address=None, show_logs=False)
    assert has_left_nothing(fake)


def test_an_interrupt_in_the_middle_leaves_nothing(make_ray: MakeRay) -> None:
    fake = make_ray(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        RayRuntime(address=None, show_logs=False)
    assert not fake.has_come_up
    assert has_left_nothing(fake)


def test_a_start_that_fails_leaves_nothing(make_ray: MakeRay) -> None:
    def fail() -> None:
        raise RuntimeError("the raylet has died\nand more")

    fake = make_ray(fail)
    with pytest.raises(ServiceUnavailable, match=r"on this machine does not work: the raylet has died$"):
        RayRuntime(address=None, show_logs=False)
    assert has_left_nothing(fake)


def test_a_folder_that_is_just_written_to_is_removed(
    make_ray: MakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = make_ray(lambda: None)
    runtime = RayRuntime(address=None, show_logs=False)
    remove = shutil.rmtree

    def remove_too_early(folder: Path, *, ignore_errors: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        remove(folder, ignore_errors=ignore_errors)
        folder.mkdir()

    monkeypatch.setattr(shutil, "rmtree", remove_too_early)
    runtime.close()
    assert has_left_nothing(fake)


def test_a_ray_that_cannot_be_imported_is_named_and_leaves_nothing(
    make_ray: MakeRay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(ray_runtime, "_SHORT_TEMP", tmp_path)
    with pytest.raises(ModuleNotFoundError, match="ray") as raised:
        RayRuntime(address=None, show_logs=False)
    assert raised.value.__context__ is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait_for_a_cluster_elsewhere(
    make_ray: MakeRay, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def answers(address: str) -> None:
        del address

    def hang() -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    make_ray(hang)
    monkeypatch.setattr(ray_runtime, "check_answers", answers)
    began = time.monotonic()
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            RayRuntime(address="elsewhere:1", show_logs=False)
        with pytest.raises(KeyboardInterrupt):
            signals.check()
    assert time.monotonic() - began < 10


def test_ray_is_not_asked_for_a_cluster_that_does_not_answer(make_ray: MakeRay) -> None:
    fake = make_ray(lambda: None)
    with pytest.raises(
        ServiceUnavailable, match=r"^Ray at 127\.0\.0\.1:1 does not answer: Connection refused$"
    ):
        RayRuntime(address="127.0.0.1:1", show_logs=False)
    assert not fake.has_come_up
