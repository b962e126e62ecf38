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
    [("triton", None), ("triton.language.extra.cuda", ModuleType("no dependent launch"))],
    ids=["none", "old"],
)
def test_a_gpu_whose_triton_does_not_do_gets_plain_torch(
    tiny_config: ThinkerConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    module: ModuleType | None,
) -> None:
    for loaded in list(sys.modules):
        if loaded.startswith("thinkstream_model.kernels.") or loaded == "thinkstream_model.triton_ops":
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, module)
    plain = TorchOps(tiny_config, torch.device("cpu"))
    monkeypatch.setattr(device_ops, "TorchOps", Mock(return_value=plain))
    with caplog.at_level(logging.WARNING):
        assert device_ops.ops_for(tiny_config, torch.device("cuda")) is plain
    assert "plain torch" in caplog.text
