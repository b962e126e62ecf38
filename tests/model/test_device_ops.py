"""Which operations a device gets."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from thinkstream_model import device_ops
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.torch_ops import TorchOps


def test_a_cpu_gets_plain_torch(tiny_config: ThinkerConfig) -> None:
    assert isinstance(device_ops.ops_for(tiny_config, torch.device("cpu")), TorchOps)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("triton", None),
        ("triton.language.extra.cuda", None),
        ("triton.language.extra.cuda", ModuleType("no dependent launch")),
    ],
    ids=["none", "no cuda", "old"],
)
def test_a_gpu_whose_triton_does_not_do_gets_plain_torch(
    tiny_config: ThinkerConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    module: ModuleType | None,
) -> None:
    monkeypatch.delitem(sys.modules, "triton.language.extra.cuda", raising=False)
    monkeypatch.setitem(sys.modules, name, module)
    plain = TorchOps(tiny_config, torch.device("cpu"))
    monkeypatch.setattr(device_ops, "TorchOps", Mock(return_value=plain))
    with caplog.at_level(logging.WARNING):
        assert device_ops.ops_for(tiny_config, torch.device("cuda")) is plain
    assert "plain torch" in caplog.text


@pytest.mark.parametrize(
    ("properties", "hip", "is_plain"),
    [
        ({"shared_memory_per_block_optin": 101_376}, None, True),  # compute capability 8.6, 8.9, 12.0
        ({"shared_memory_per_block_optin": 166_912}, None, False),  # 8.0
        ({"shared_memory_per_block_optin": 232_448}, None, False),  # 9.0
        ({"shared_memory_per_block_optin": 65_536}, "6.2", False),
        ({}, None, False),
    ],
    ids=["ada", "ampere", "hopper", "amd", "unknown"],
)
def test_a_gpu_on_which_the_kernels_cannot_be_launched_gets_plain_torch(
    tiny_config: ThinkerConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    properties: dict[str, int],
    hip: str | None,
    is_plain: bool,
) -> None:
    plain, kernels = object(), ModuleType("triton_ops")
    monkeypatch.setattr(kernels, "TritonOps", Mock(), raising=False)
    monkeypatch.setitem(sys.modules, "thinkstream_model.triton_ops", kernels)
    cuda = ModuleType("cuda")
    monkeypatch.setattr(cuda, "gdc_wait", None, raising=False)
    monkeypatch.setitem(sys.modules, "triton.language.extra.cuda", cuda)
    monkeypatch.setattr(device_ops, "TorchOps", Mock(return_value=plain))
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Mock(return_value=SimpleNamespace(**properties)))
    with caplog.at_level(logging.WARNING):
        assert (device_ops.ops_for(tiny_config, torch.device("cuda")) is plain) == is_plain
    assert [record.getMessage() for record in caplog.records] == [
        "99 KB of shared memory a block are too few for the kernels, which need 160: "
        "the GPU runs plain torch, several times slower and not exact"
    ] * is_plain
