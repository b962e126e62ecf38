"""The choice of experts of a small batch, from the residual stream on.

Two launches, as in ``router.py``, but the first also norms, and needs no parts: a program holds the whole
depth of a logit in registers.

T rows, D width, E experts, K experts a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dense_small import norm_linear_small, norm_linear_small_reference
from .launch import is_dependent, launch_options
from .router import pick_kernel, route_reference
from .tiles import power_of_2


def norm_route_small(
    residual_TD: Tensor, gain_D: Tensor, router_ED: Tensor, eps: float, top_k: int, *, renormalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm the rows and choose the experts of each, as ``route`` does.

    Args:
        residual_TD: The rows.
        gain_D: Weight of the norm.
        router_ED: One row per expert.
        eps: Guards the norm's root.
        top_k: How many experts a row goes to.
        renormalize: Whether the chosen shares are scaled to sum to 1.

    Returns:
        The normed rows, [T, D]; the experts, int32 [T, K]; their shares, float32 [T, K].
    """
    logits_TE, normed_TD = norm_linear_small(residual_TD, gain_D, router_ED, eps, out_dtype=torch.float32)
    (num_rows, num_experts), device = logits_TE.shape, logits_TE.device
    expert_ids_TK = torch.empty(num_rows, top_k, dtype=torch.int32, device=device)
    weights_TK = torch.empty(num_rows, top_k, dtype=torch.float32, device=device)
    pick_kernel[(num_rows,)](
        logits_TE, expert_ids_TK, weights_TK, None, None, num_rows, num_rows,
        NUM_PARTS=1, NUM_EXPERTS=num_experts, ALL_EXPERTS=power_of_2(num_experts), TOP_K=top_k,
        RENORMALIZE=renormalize, WITH_LISTS=False,
        DEPENDENT=is_dependent(device), num_warps=1, **launch_options(device),
    )  # fmt: skip
    return normed_TD, expert_ids_TK, weights_TK


def norm_route_small_reference(
    residual_TD: Tensor, gain_D: Tensor, router_ED: Tensor, eps: float, top_k: int, *, renormalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``norm_route_small`` in plain torch."""
    _, normed_TD = norm_linear_small_reference(residual_TD, gain_D, router_ED, eps)
    expert_ids_TK, weights_TK, _ = route_reference(
        normed_TD, router_ED, top_k, renormalize=renormalize, with_lists=False
    )
    return normed_TD, expert_ids_TK, weights_TK
