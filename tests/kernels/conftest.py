"""Kernel tests: on the CPU through Triton's interpreter, in a process of their own, else on the GPU."""

from __future__ import annotations

import os

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if IS_INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(
    params=[torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=["float32", "bfloat16"]
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if request.param == torch.bfloat16 and IS_INTERPRETED:
        pytest.skip("the interpreter multiplies the bits of bfloat16")
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture(autouse=True)
def needs_gpu(request: pytest.FixtureRequest, device: torch.device) -> None:
    if request.node.get_closest_marker("gpu") and device.type != "cuda":
        pytest.skip("needs a GPU")
