"""Kernels are compiled for a GPU that is not there, which nothing can be launched on."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.dry_steps import compile_steps
from thinkstream_model.parameters import ThinkerWeights
from thinkstream_model.torch_ops import TorchOps

triton: Any = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available():
    pytest.skip("needs Triton's compiler and no GPU", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from thinkstream_model.kernels.ahead import compile_ahead  # noqa: E402
from thinkstream_model.triton_ops import TritonOps  # noqa: E402

_LIMITS = {"num_valid_ids": 200, "block_size": 16, "max_sequences": 8, "max_tokens": 160, "max_context": 512}


class _Launcher:
    """What starts a kernel; it remembers which thread made it, and how often it was called."""

    made: ClassVar[list[_Launcher]] = []

    def __init__(self, source: Any, metadata: Any) -> None:
        self.maker, self.num_launches = threading.get_ident(), 0
        self.made.append(self)

    def __call__(self, *args: Any) -> None:
        self.num_launches += 1


class _Absent:
    """A driver of a GPU that can be compiled for and loaded to, and does not exist."""

    def __init__(self) -> None:
        self.launcher_cls = _Launcher
        self.utils = self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[object, ...]:
        return object(), object(), 32, 0, 1024

    def set_current_device(self, device: int) -> None:
        assert device == 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source: tl.tensor, target: tl.tensor, NUMBER: tl.constexpr) -> None:
    places = tl.arange(0, NUMBER)
    tl.store(target + places, tl.load(source + places))


@triton.jit  # type: ignore[untyped-decorator]
def _wrong(target: tl.tensor) -> None:
    tl.static_assert(False)


@pytest.fixture(autouse=True)
def absent_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(triton.runtime.driver, "_active", _Absent())
    monkeypatch.setattr(_Launcher, "made", [])
    _copy.device_caches.clear()  # else of an earlier test


def _launch(number: int) -> None:
    _copy[(1,)](torch.zeros(64), torch.zeros(64), NUMBER=number)


def _num_launches() -> int:
    return sum(launcher.num_launches for launcher in _Launcher.made)


def test_compiles_each_kernel_once_and_launches_none(tmp_path: Path) -> None:
    def run() -> None:
        for number in (16, 32, 16, 32):
            _launch(number)

    assert compile_ahead(run) == 2
    assert len(list(tmp_path.glob("kernels/*/_copy.cubin"))) == 2
    assert compile_ahead(run) == 0
    assert _num_launches() == 0
    _launch(16)  # in earnest again
    assert _num_launches() == 1


def test_leaves_nothing_but_the_launch_for_the_first_launch() -> None:
    compile_ahead(lambda: _launch(16))
    assert [launcher.maker != threading.get_ident() for launcher in _Launcher.made] == [True]
    _launch(16)
    assert len(_Launcher.made) == 1
    assert _num_launches() == 1


def test_leaves_the_launches_of_other_threads_alone() -> None:
    def run() -> None:
        other = threading.Thread(target=_launch, args=(16,))
        other.start()
        other.join()

    compile_ahead(run)
    assert _num_launches() == 1


def test_a_kernel_that_cannot_be_compiled_says_so_when_it_is_launched() -> None:
    def run() -> None:
        _wrong[(1,)](torch.zeros(1))

    compile_ahead(run)
    with pytest.raises(triton.CompilationError):
        run()


def test_a_kernel_that_the_device_has_no_room_for_says_so_when_it_is_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(driver: _Absent, *args: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(_Absent, "load_binary", refuse)
    compile_ahead(lambda: _launch(16))
    with pytest.raises(RuntimeError, match="no room"):
        _launch(16)


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    def run() -> None:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        compile_ahead(run)
    _launch(16)
    assert _num_launches() == 1
    assert compile_ahead(lambda: _launch(64)) == 1


def test_makes_the_kernels_of_all_steps_ready(tiny_config: ThinkerConfig) -> None:
    weights = ThinkerWeights.empty(tiny_config, "cpu", torch.bfloat16)
    for fast_small_batch in (False, True):
        ops = TritonOps(tiny_config, torch.device("cpu"), fast_small_batch=fast_small_batch)
        assert compile_steps(weights, ops, **_LIMITS) > 5
        fewer = _LIMITS | {"max_sequences": 7, "max_tokens": 100, "max_context": 300}
        assert compile_steps(weights, ops, **fewer) == 0


def test_plain_torch_has_nothing_to_compile(tiny_config: ThinkerConfig) -> None:
    weights = ThinkerWeights.empty(tiny_config, "cpu", torch.float32)
    assert compile_steps(weights, TorchOps(tiny_config, torch.device("cpu")), **_LIMITS) == 0
