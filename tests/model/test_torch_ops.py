"""Each operation against a plain loop."""

# torch's stubs leave `tolist` untyped.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.torch_ops import TorchOps

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["exact", "plain"])
def ops(request: pytest.FixtureRequest, tiny_config: ThinkerConfig) -> TorchOps:
    return TorchOps(tiny_config, CPU, exact=request.param)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestRouter:
    def test_softmax_over_all_then_top_k(self, ops: TorchOps) -> None:
        hidden_TD, router_ED = _random(21, 56), _random(8, 56, seed=1)
        probabilities_TE = (hidden_TD @ router_ED.T).softmax(-1)
        for renormalize in (True, False):
            routing = ops.route(hidden_TD, router_ED, 3, renormalize=renormalize)
            for row in range(21):
                order = probabilities_TE[row].argsort(descending=True).tolist()[:3]
                assert routing.expert_ids_TK[row].tolist() == order
                expected = probabilities_TE[row, order]
                expected = expected / expected.sum() if renormalize else expected
                torch.testing.assert_close(routing.weights_TK[row], expected)

    def test_probabilities_are_float32_and_weights_are_not(self, ops: TorchOps) -> None:
        hidden_TD, router_ED = _random(4, 56).bfloat16(), _random(8, 56, seed=1).bfloat16()
        routing = ops.route(hidden_TD, router_ED, 8, renormalize=True)
        expected = (hidden_TD @ router_ED.T).float().softmax(-1).sort(descending=True).values
        assert routing.weights_TK.dtype == torch.bfloat16
        torch.testing.assert_close(routing.weights_TK, expected.bfloat16(), rtol=0.02, atol=0)


class TestExperts:
    @pytest.mark.parametrize("exact", [True, False], ids=["exact", "plain"])
    @pytest.mark.parametrize("width", [37, 40], ids=["odd", "grouped"])
    @pytest.mark.parametrize("num_rows", [1, 16, 53])
    def test_against_a_loop(self, tiny_config: ThinkerConfig, exact: bool, width: int, num_rows: int) -> None:
        ops = TorchOps(replace(tiny_config, moe_intermediate_size=width), CPU, exact=exact)
        hidden_TD = _random(num_rows, 56)
        gate_up_E2ID, down_EDI = _random(8, 2 * width, 56, seed=1) / 7, _random(8, 56, width, seed=2) / 6
        generator = torch.Generator().manual_seed(3)
        # Experts 5 to 7 get nothing.
        slots_TK = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(num_rows)])
        outputs_TKD = ops.experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI)
        for row in range(num_rows):
            for k, expert in enumerate(slots_TK[row].tolist()):
                gate_I, up_I = (gate_up_E2ID[expert] @ hidden_TD[row]).chunk(2)
                expected = down_EDI[expert] @ (F.silu(gate_I) * up_I)
                torch.testing.assert_close(outputs_TKD[row, k], expected, rtol=1e-4, atol=1e-5)

    def test_outputs_are_summed_in_the_order_of_k(self, ops: TorchOps) -> None:
        outputs_TKD, weights_TK = _random(5, 4, 56), _random(5, 4, seed=1).softmax(-1)
        total_TD = torch.zeros(5, 56)
        for k in range(4):
            total_TD = total_TD + outputs_TKD[:, k] * weights_TK[:, k : k + 1]
        assert torch.equal(ops.combine(outputs_TKD, weights_TK), total_TD)


def test_dense_mlp(ops: TorchOps) -> None:
    hidden_TD, gate_up_2ID, down_DI = _random(19, 56), _random(140, 56, seed=1), _random(56, 70, seed=2)
    gate_TI, up_TI = (hidden_TD @ gate_up_2ID.T).chunk(2, -1)
    expected = (F.silu(gate_TI) * up_TI) @ down_DI.T
    torch.testing.assert_close(ops.swiglu(hidden_TD, gate_up_2ID, down_DI), expected, rtol=1e-4, atol=1e-3)


def test_silu_does_not_overflow(ops: TorchOps) -> None:
    gate_up_2ID = torch.tensor([[1000.0], [1.0]])
    hidden_TD = torch.tensor([[-1.0], [1.0]])
    out_TD = ops.swiglu(hidden_TD, gate_up_2ID, torch.ones(1, 1))
    assert out_TD.tolist() == [[0.0], [1000.0]]


def test_norm_of_the_sum(ops: TorchOps) -> None:
    hidden_TD, residual_TD, weight_D = _random(7, 56), _random(7, 56, seed=1), _random(56, seed=2)
    normed_TD, sum_TD = ops.add_rms_norm(hidden_TD, residual_TD, weight_D, 1e-6)
    assert torch.equal(sum_TD, hidden_TD + residual_TD)
    torch.testing.assert_close(normed_TD, F.rms_norm(sum_TD, (56,), weight_D, 1e-6))
    assert torch.equal(ops.rms_norm(sum_TD, weight_D, 1e-6), normed_TD)
