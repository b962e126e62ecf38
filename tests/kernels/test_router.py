"""The router's choice and the experts' lists."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.support import assert_close, normal

from thinkstream_model.kernels import router
from thinkstream_model.kernels.router import lists_of, lists_of_reference, route, route_reference
from thinkstream_model.ops import ExpertLists


def as_sets(lists: ExpertLists) -> list[list[int]]:
    lists_of_experts = zip(lists.pairs_EL, lists.counts_E, strict=True)
    return [sorted(int(pair) for pair in pairs_L[: int(count)]) for pairs_L, count in lists_of_experts]


@pytest.mark.parametrize("with_lists", [True, False])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    ("num_rows", "width", "num_experts", "top_k"),
    [(1, 64, 8, 2), (3, 64, 6, 2), (37, 48, 5, 4), (70, 64, 4, 4),
     pytest.param(1, 2048, 128, 8, marks=pytest.mark.gpu),
     pytest.param(300, 2048, 128, 8, marks=pytest.mark.gpu)],
)  # fmt: skip
def test_route(
    device: torch.device, dtype: torch.dtype, num_rows: int, width: int, num_experts: int, top_k: int,
    renormalize: bool, with_lists: bool,
) -> None:  # fmt: skip
    hidden_TD, router_ED = normal(num_rows, width, device, dtype), normal(num_experts, width, device, dtype)
    ids_TK, weights_TK, lists = route(
        hidden_TD, router_ED, top_k, renormalize=renormalize, with_lists=with_lists
    )
    expected_ids_TK, expected_weights_TK, _ = route_reference(
        hidden_TD, router_ED, top_k, renormalize=renormalize, with_lists=False
    )
    assert ids_TK.dtype == torch.int32 and weights_TK.dtype == torch.float32
    # Sums in another order may change places where two logits all but agree: rare, and then the shares agree.
    assert (ids_TK != expected_ids_TK).float().mean() < 0.005
    torch.testing.assert_close(weights_TK, expected_weights_TK, rtol=1e-3, atol=1e-5)
    assert (lists is not None) == with_lists
    if lists is not None:
        assert as_sets(lists) == as_sets(lists_of_reference(ids_TK, num_experts))


def test_ties_go_to_the_lower_expert(device: torch.device, dtype: torch.dtype) -> None:
    hidden_TD, router_ED = (
        normal(3, 64, device, dtype),
        normal(1, 64, device, dtype).expand(6, 64).contiguous(),
    )
    ids_TK, weights_TK, _ = route(hidden_TD, router_ED, 4, renormalize=True, with_lists=False)
    assert ids_TK.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(weights_TK, torch.full_like(weights_TK, 0.25))


@pytest.mark.parametrize("broken", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_experts", [6, 8])
def test_a_broken_row_goes_to_distinct_experts(
    device: torch.device, dtype: torch.dtype, num_experts: int, broken: float
) -> None:
    hidden_TD, router_ED = normal(5, 64, device, dtype), normal(num_experts, 64, device, dtype)
    whole_TK, whole_weights_TK, _ = route(hidden_TD, router_ED, 4, renormalize=True, with_lists=False)
    hidden_TD[2, 3] = broken
    hidden_TD[3] = broken
    ids_TK, weights_TK, lists = route(hidden_TD, router_ED, 4, renormalize=True, with_lists=True)
    for ids_K in ids_TK:
        ids = {int(expert) for expert in ids_K}
        assert len(ids) == 4 and ids <= set(range(num_experts))
    sound = [0, 1, 4]
    assert torch.equal(ids_TK[sound], whole_TK[sound])
    assert torch.equal(weights_TK[sound], whole_weights_TK[sound])
    assert lists is not None and lists.counts_E.sum() == 20


def test_lists_of(device: torch.device) -> None:
    slots_TK = torch.tensor([[3, 0], [1, 3], [-1, 3], [7, 0], [3, 3]], device=device)
    for slots in (slots_TK, slots_TK.int()):
        lists = lists_of(slots, 5)
        assert lists.counts_E.tolist() == [2, 1, 0, 5, 0]
        assert as_sets(lists) == as_sets(lists_of_reference(slots, 5))


@pytest.mark.gpu
@pytest.mark.parametrize("renormalize", [True, False])
def test_rows_do_not_know_their_batch(device: torch.device, dtype: torch.dtype, renormalize: bool) -> None:
    hidden_TD, router_ED = normal(3000, 2048, device, dtype), normal(128, 2048, device, dtype)
    ids_1K, weights_1K, _ = route(hidden_TD[:1], router_ED, 8, renormalize=renormalize, with_lists=False)
    for num_rows in (5, 33, 64, 129, 256, 700, 3000):
        ids_TK, weights_TK, lists = route(
            hidden_TD[:num_rows], router_ED, 8, renormalize=renormalize, with_lists=True
        )
        assert torch.equal(ids_TK[:1], ids_1K), num_rows
        assert torch.equal(weights_TK[:1], weights_1K), num_rows
        assert lists is not None and lists.counts_E.sum() == 8 * num_rows


def test_weights_are_those_of_the_softmax(device: torch.device) -> None:
    hidden_TD, router_ED = normal(9, 64, device, torch.float32), normal(8, 64, device, torch.float32)
    ids_TK, weights_TK, _ = route(hidden_TD, router_ED, 8, renormalize=False, with_lists=False)
    softmax_TE = (hidden_TD @ router_ED.t()).softmax(-1)
    assert_close(weights_TK, softmax_TE.gather(1, ids_TK.long()))


@pytest.mark.parametrize("width", [64, 250, 2048])
def test_parts_in_turn_come_to_the_same_bits(
    device: torch.device, dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden_TD, router_ED = normal(90, width, device, dtype), normal(12, width, device, dtype)
    side_by_side = router.route(hidden_TD, router_ED, 4, renormalize=True, with_lists=True)
    monkeypatch.setattr(router, "_MAX_SPLIT_ROWS", 89)
    in_turn = router.route(hidden_TD, router_ED, 4, renormalize=True, with_lists=True)
    assert torch.equal(in_turn[0], side_by_side[0])
    assert torch.equal(in_turn[1], side_by_side[1])
    assert in_turn[2] is not None and side_by_side[2] is not None
    assert as_sets(in_turn[2]) == as_sets(side_by_side[2])
