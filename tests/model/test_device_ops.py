"""Which operations a device gets."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch

from thinkstream_model import device_ops
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.torch_ops import TorchOps


def test_a_cpu_gets_plain_torch(tiny_config: ThinkerConfig) -> None:
    assert isinstance(device_ops.ops_for(tiny_config, torch.device("cpu"), fast_small_batch=True), TorchOps)


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
