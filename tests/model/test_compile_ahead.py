"""Kernels are compiled for a GPU that is not there, which nothing can be launched on."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

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


class _Absent:
    """A driver of a GPU that can be compiled for and does not exist."""

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def absent_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(triton.runtime.driver, "_active", _Absent())


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source: tl.tensor, target: tl.tensor, NUMBER: tl.constexpr) -> None:
    places = tl.arange(0, NUMBER)
    tl.store(target + places, tl.load(source + places))


@triton.jit  # type: ignore[untyped-decorator]
def _wrong(target: tl.tensor) -> None:
    tl.static_assert(False)


def _launch(number: int) -> None:
    _copy[(1,)](torch.zeros(64), torch.zeros(64), NUMBER=number)


def test_compiles_each_kernel_once_and_launches_none(tmp_path: Path) -> None:
    def run() -> None:
        for number in (16, 32, 16, 32):
            _launch(number)

    assert compile_ahead(run) == 2
    assert len(list(tmp_path.glob("kernels/*/_copy.cubin"))) == 2
    assert compile_ahead(run) == 0
    with pytest.raises(AttributeError, match="_Absent"):
        _launch(16)  # in earnest again


def test_leaves_the_launches_of_other_threads_alone() -> None:
    errors: list[Exception] = []

    def launch_in_earnest() -> None:
        try:
            _launch(16)
        except AttributeError as error:
            errors.append(error)

    def run() -> None:
        other = threading.Thread(target=launch_in_earnest)
        other.start()
        other.join()

    compile_ahead(run)
    assert len(errors) == 1


def test_a_kernel_that_cannot_be_compiled_says_so_when_it_is_launched() -> None:
    def run() -> None:
        _wrong[(1,)](torch.zeros(1))

    compile_ahead(run)
    with pytest.raises(triton.CompilationError):
        run()


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    def run() -> None:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        compile_ahead(run)
    with pytest.raises(AttributeError, match="_Absent"):
        _launch(16)
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
