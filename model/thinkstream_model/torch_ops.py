"""The Thinker's operations in plain torch: the reference, and what runs on a CPU.

Exact means: a row's result depends on that row alone, bit for bit, not on how many others share the
step, nor on whether a prompt came whole, in chunks or again after a preemption. A library's matmul picks
its summation order by the number of rows, so rows go through every matrix in tiles of exactly 16, the
last one padded with zeros; each expert's rows too. Element-wise work uses only operations whose vector
and scalar code agree bit for bit (``exp`` does, ``silu`` and ``sigmoid`` do not).

T tokens, D hidden width, O output width, E experts, K experts per row, P = T * K pairs, R rows laid out
by expert, I inner width.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ThinkerConfig
from .inputs import StepInputs
from .kv_cache import KVCache
from .ops import Addend, ExpertLists, Routing
from .rms_norm import rms_norm
from .rope import rotary_table
from .sampler import Sampled, SamplingInputs, sample
from .swiglu import silu_and_multiply
from .torch_attention import PagedAttention

TILE_ROWS = 16


class _Span(NamedTuple):
    """The rows [start, end) of one expert."""

    expert: int
    start: int
    end: int


class TorchOps:
    """``Ops`` in torch.

    Args:
        config: The Thinker's shape.
        device: Where its weights are.
        exact: Whether to tile as described above. On a GPU a launch per tile costs more than it is worth
            to this class, so there it is off unless asked for, and experts go through grouped matmuls.
    """

    is_capturable = False  # attention is planned on the host

    def __init__(self, config: ThinkerConfig, device: torch.device, *, exact: bool | None = None) -> None:
        self._config = config
        self._exact = device.type == "cpu" if exact is None else exact
        # The grouped matmul wants rows of whole 16 bytes, which odd little shapes do not have.
        widths = (config.hidden_size, config.moe_intermediate_size)
        self._is_grouped = not self._exact and all(width % 8 == 0 for width in widths)
        self._rotary = rotary_table(
            config.max_position_embeddings, config.head_dim, config.rope_theta, device
        )

    def embed(self, input_ids_T: Tensor, embedding_VD: Tensor) -> Tensor:
        """See ``Ops.embed``."""
        return F.embedding(input_ids_T, embedding_VD)

    def attention(self, inputs: StepInputs, kv: KVCache) -> PagedAttention:
        """See ``Ops.attention``."""
        return PagedAttention(self._config, inputs, kv, self._rotary)

    def rms_norm(self, hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See ``Ops.rms_norm``."""
        return rms_norm(hidden_TD, weight_D, eps)

    def add_rms_norm(
        self, addend_TD: Addend, residual_TD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Ops.add_rms_norm``. Nothing here leaves a sum to others."""
        assert isinstance(addend_TD, Tensor)
        residual_TD = residual_TD + addend_TD
        return rms_norm(residual_TD, weight_D, eps), residual_TD

    def linear(self, hidden_TD: Tensor, weight_OD: Tensor) -> Tensor:
        """See ``Ops.linear``."""
        return self._matmul(self._pad(hidden_TD), weight_OD)[: hidden_TD.shape[0]]

    def project(self, hidden_TQ: Tensor, weight_DQ: Tensor) -> Tensor:
        """See ``Ops.project``."""
        return self.linear(hidden_TQ, weight_DQ)

    def swiglu(self, hidden_TD: Tensor, gate_up_2ID: Tensor, down_DI: Tensor) -> Tensor:
        """See ``Ops.swiglu``."""
        inner_TI = silu_and_multiply(self._matmul(self._pad(hidden_TD), gate_up_2ID))
        return self._matmul(inner_TI, down_DI)[: hidden_TD.shape[0]]

    def route(self, hidden_TD: Tensor, router_ED: Tensor, top_k: int, *, renormalize: bool) -> Routing:
        """See ``Ops.route``."""
        logits_TE = self.linear(hidden_TD, router_ED)
        weights_TK, expert_ids_TK = logits_TE.softmax(dim=-1, dtype=torch.float32).topk(top_k, dim=-1)
        if renormalize:
            weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return Routing(expert_ids_TK, weights_TK.to(hidden_TD.dtype))

    def experts(
        self,
        hidden_TD: Tensor,
        slots_TK: Tensor,
        gate_up_E2ID: Tensor,
        down_EDI: Tensor,
        lists: ExpertLists | None = None,
    ) -> Tensor:
        """See ``Ops.experts``. Experts without rows are not touched."""
        if self._is_grouped:
            return _grouped_experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI)
        num_rows, top_k = slots_TK.shape
        places_P, spans = _group_by_expert(slots_TK.flatten(), gate_up_E2ID.shape[0])
        hidden_RD = hidden_TD.new_zeros(spans[-1].end, hidden_TD.shape[1])
        hidden_RD.index_copy_(0, places_P, hidden_TD.repeat_interleave(top_k, dim=0))
        gate_up_R2I = hidden_TD.new_empty(hidden_RD.shape[0], gate_up_E2ID.shape[1])
        for expert, start, end in spans:
            self._matmul_into(gate_up_R2I[start:end], hidden_RD[start:end], gate_up_E2ID[expert])
        inner_RI = silu_and_multiply(gate_up_R2I)
        outputs_RD = torch.empty_like(hidden_RD)
        for expert, start, end in spans:
            self._matmul_into(outputs_RD[start:end], inner_RI[start:end], down_EDI[expert])
        return outputs_RD.index_select(0, places_P).view(num_rows, top_k, -1)

    def combine(self, outputs_TKD: Tensor, weights_TK: Tensor) -> Tensor:
        """See ``Ops.combine``."""
        weighted_TKD = outputs_TKD * weights_TK.unsqueeze(-1)
        total_TD = weighted_TKD[:, 0]
        for k in range(1, weighted_TKD.shape[1]):
            total_TD = total_TD + weighted_TKD[:, k]
        return total_TD

    def logits(self, hidden_SD: Tensor, lm_head_VD: Tensor) -> Tensor:
        """See ``Ops.logits``."""
        return self.linear(hidden_SD, lm_head_VD).float()

    def sample(self, logits_SV: Tensor, inputs: SamplingInputs, num_valid_ids: int) -> Sampled:
        """See ``Ops.sample``."""
        return sample(logits_SV, inputs, num_valid_ids=num_valid_ids)

    def _pad(self, rows_TD: Tensor) -> Tensor:
        padding = -rows_TD.shape[0] % TILE_ROWS if self._exact else 0
        return torch.cat((rows_TD, rows_TD.new_zeros(padding, rows_TD.shape[1]))) if padding else rows_TD

    def _matmul(self, rows_TD: Tensor, weight_OD: Tensor) -> Tensor:
        out_TO = rows_TD.new_empty(rows_TD.shape[0], weight_OD.shape[0])
        self._matmul_into(out_TO, rows_TD, weight_OD)
        return out_TO

    def _matmul_into(self, out_TO: Tensor, rows_TD: Tensor, weight_OD: Tensor) -> None:
        """Multiply whole tiles; the rows are padded already."""
        weight_DO = weight_OD.t()
        if not self._exact or rows_TD.shape[0] == TILE_ROWS:
            torch.mm(rows_TD, weight_DO, out=out_TO)
            return
        for out_tile, tile in zip(
            torch.split(out_TO, TILE_ROWS), torch.split(rows_TD, TILE_ROWS), strict=True
        ):
            torch.mm(tile, weight_DO, out=out_tile)


def _group_by_expert(slots_P: Tensor, num_experts: int) -> tuple[Tensor, list[_Span]]:
    """Lay pairs out expert by expert, each in whole tiles.

    Returns:
        The row of each pair, and the rows of each expert that has any.
    """
    counts_E = torch.bincount(slots_P, minlength=num_experts)
    padding_E = -counts_E % TILE_ROWS
    # A pair's row is its place among the pairs sorted by expert, moved behind the padding of the
    # experts before its own.
    padding_before_E = padding_E.cumsum(0) - padding_E
    order_P = slots_P.argsort(stable=True)
    sorted_places_P = torch.arange(slots_P.numel(), device=slots_P.device)
    sorted_places_P += padding_before_E.index_select(0, slots_P.index_select(0, order_P))
    places_P = torch.empty_like(order_P).index_copy_(0, order_P, sorted_places_P)
    ends = itertools.accumulate(cast("list[int]", (counts_E + padding_E).tolist()), initial=0)
    spans = (_Span(expert, a, z) for expert, (a, z) in enumerate(itertools.pairwise(ends)))
    return places_P, [span for span in spans if span.end > span.start]


def _grouped_experts(hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor) -> Tensor:
    """All experts in two launches, without asking the device how many rows each has."""
    num_rows, top_k = slots_TK.shape
    slots_P = slots_TK.flatten()
    order_P = slots_P.argsort(stable=True)
    # A count that does not bring its result to the host, as `bincount` would.
    experts_E = torch.arange(gate_up_E2ID.shape[0], device=slots_P.device)
    ends_E = torch.searchsorted(slots_P.index_select(0, order_P), experts_E, right=True).int()
    hidden_PD = hidden_TD.index_select(0, order_P // top_k)
    gate_up_P2I = F.grouped_mm(hidden_PD, gate_up_E2ID.transpose(1, 2), offs=ends_E)
    outputs_PD = F.grouped_mm(silu_and_multiply(gate_up_P2I), down_EDI.transpose(1, 2), offs=ends_E)
    return torch.empty_like(outputs_PD).index_copy_(0, order_P, outputs_PD).view(num_rows, top_k, -1)
