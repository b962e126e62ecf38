"""The exchange that leaves everything where it is."""

from __future__ import annotations

import torch

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.exchange import LocalExchange
from thinkstream_model.ops import Routing
from thinkstream_model.torch_ops import TorchOps


def test_local_exchange(tiny_config: ThinkerConfig) -> None:
    ops = TorchOps(tiny_config, torch.device("cpu"))
    exchange = LocalExchange(ops)
    routing = Routing(torch.tensor([[3, 1]]), torch.tensor([[0.75, 0.25]]))
    hidden_TD = torch.ones(1, 5)
    hidden_RD, slots_RK, _ = exchange.dispatch(0, hidden_TD, routing)
    assert hidden_RD is hidden_TD
    assert slots_RK.tolist() == [[3, 1]]
    outputs_RKD = torch.stack([torch.full((5,), 4.0), torch.full((5,), 8.0)]).unsqueeze(0)
    combined_TD = exchange.combine(0, outputs_RKD, routing)
    assert isinstance(combined_TD, torch.Tensor)
    assert combined_TD.tolist() == [[5.0] * 5]
