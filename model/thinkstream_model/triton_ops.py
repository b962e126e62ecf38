"""The Thinker's operations in Triton, for GPUs.

Exact: a row's result does not depend on what shares its step, nor on whether it is prefilled or decoded,
because no kernel's order of summation follows the number of rows. What a kernel may leave to the
next one to do on the way, it leaves: sums into the residual stream are done where the stream is normed.

T tokens, D hidden width, O output width, Q width of queries, keys and values together, H query heads, C
width of a head, E experts, K experts per row, I inner width, S rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ThinkerConfig
from .inputs import StepInputs, count_decodes
from .kernels.attention_decode import decode_attention
from .kernels.attention_prefill import prefill_attention
from .kernels.dense import linear, linear_in_parts
from .kernels.experts import experts, needs_lists
from .kernels.norm import add_rms_norm, rms_norm
from .kernels.prologue import attention_prologue
from .kernels.router import route
from .kernels.sampling import sample_tokens
from .kv_cache import KVCache
from .ops import Addend, ExpertLists, Parts, Routing
from .rope import Rotation, rotary_table
from .sampler import Sampled, SamplingInputs, apply_extras, logprobs_of
from .swiglu import silu_and_multiply

MAX_DECODE_ROWS = 4_096
"""Up to so many, the last of a row's programs merges what the others found; beyond, one more kernel does."""


class TritonOps:
    """``Ops`` in Triton.

    Args:
        config: The Thinker's shape.
        device: Where its weights are.
    """

    is_capturable = True

    def __init__(self, config: ThinkerConfig, device: torch.device) -> None:
        self._config = config
        self._rotary = rotary_table(
            config.max_position_embeddings, config.head_dim, config.rope_theta, device
        )
        self._arrivals_X = torch.zeros(
            MAX_DECODE_ROWS * config.num_kv_heads, dtype=torch.int32, device=device
        )

    def embed(self, input_ids_T: Tensor, embedding_VD: Tensor) -> Tensor:
        """See ``Ops.embed``."""
        return F.embedding(input_ids_T, embedding_VD)

    def attention(self, inputs: StepInputs, kv: KVCache) -> TritonAttention:
        """See ``Ops.attention``."""
        return TritonAttention(self._config, inputs, kv, self._rotary, self._arrivals_X)

    def rms_norm(self, hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See ``Ops.rms_norm``."""
        return rms_norm(hidden_TD, weight_D, eps)

    def add_rms_norm(
        self, addend_TD: Addend, residual_TD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See ``Ops.add_rms_norm``."""
        return add_rms_norm(addend_TD, residual_TD, weight_D, eps)

    def linear(self, hidden_TD: Tensor, weight_OD: Tensor) -> Tensor:
        """See ``Ops.linear``."""
        return linear(hidden_TD, weight_OD)

    def project(self, hidden_TQ: Tensor, weight_DQ: Tensor) -> Addend:
        """See ``Ops.project``."""
        return linear_in_parts(hidden_TQ, weight_DQ)

    def swiglu(self, hidden_TD: Tensor, gate_up_2ID: Tensor, down_DI: Tensor) -> Addend:
        """See ``Ops.swiglu``."""
        return linear(silu_and_multiply(linear(hidden_TD, gate_up_2ID)), down_DI)

    def route(self, hidden_TD: Tensor, router_ED: Tensor, top_k: int, *, renormalize: bool) -> Routing:
        """See ``Ops.route``."""
        with_lists = needs_lists(hidden_TD)
        return Routing(*route(hidden_TD, router_ED, top_k, renormalize=renormalize, with_lists=with_lists))

    def experts(
        self,
        hidden_TD: Tensor,
        slots_TK: Tensor,
        gate_up_E2ID: Tensor,
        down_EDI: Tensor,
        lists: ExpertLists | None = None,
    ) -> Tensor:
        """See ``Ops.experts``. An expert's weights are read once, and only if it has rows."""
        return experts(hidden_TD, slots_TK, gate_up_E2ID, down_EDI, lists)

    def combine(self, outputs_TKD: Tensor, weights_TK: Tensor) -> Addend:
        """See ``Ops.combine``."""
        return Parts(outputs_TKD, weights_TK)

    def logits(self, hidden_SD: Tensor, lm_head_VD: Tensor) -> Tensor:
        """See ``Ops.logits``."""
        return linear(hidden_SD, lm_head_VD, out_dtype=torch.float32)

    def sample(self, logits_SV: Tensor, inputs: SamplingInputs, num_valid_ids: int) -> Sampled:
        """See ``Ops.sample``. Rows that ask for nothing special are not changed by those that do."""
        scores_SV = logits_SV if inputs.extras is None else apply_extras(logits_SV, inputs.extras)
        token_ids_S = sample_tokens(scores_SV, inputs, num_valid_ids=num_valid_ids)
        if inputs.num_logprobs == 0:
            return Sampled(token_ids_B=token_ids_S)
        return logprobs_of(token_ids_S, logits_SV[:, :num_valid_ids], inputs.num_logprobs)


class TritonAttention:
    """``StepAttention`` in Triton. Rows with one new token come first and go the way of decoding.

    Both ways give the same bits; they differ in how they share the keys among the processors.

    Args:
        config: The Thinker's shape.
        inputs: The step's tokens.
        kv: The cache.
        rotary: Rotation of every position.
        arrivals_X: int32 zeros, one per row and key head or more, and zeros again after each layer.
    """

    def __init__(
        self,
        config: ThinkerConfig,
        inputs: StepInputs,
        kv: KVCache,
        rotary: Rotation,
        arrivals_X: Tensor,
    ) -> None:
        self._inputs, self._kv, self._rotary, self._arrivals_X = inputs, kv, rotary, arrivals_X
        self._eps = config.rms_norm_eps
        self._num_decodes = count_decodes(inputs.query_lens)
        self._max_context = max(inputs.context_lens[: self._num_decodes], default=0)
        self._max_query_len = max(inputs.query_lens[self._num_decodes :], default=0)
        if self._max_query_len:
            self._cu_seqlens_B1 = inputs.cu_seqlens_q_B1[self._num_decodes :] - self._num_decodes

    def prologue(self, qkv_TQ: Tensor, q_norm_C: Tensor, k_norm_C: Tensor, layer: int) -> Tensor:
        """See ``StepAttention.prologue``."""
        return attention_prologue(
            qkv_TQ,
            q_norm_C,
            k_norm_C,
            *self._rotary,
            self._inputs.positions_T,
            self._inputs.slot_mapping_T,
            self._kv.keys_NSHC[layer],
            self._kv.values_NSHC[layer],
            self._eps,
        )

    def attend(self, q_THC: Tensor, layer: int) -> Tensor:
        """See ``StepAttention.attend``."""
        inputs, n = self._inputs, self._num_decodes
        keys_NSHC, values_NSHC = self._kv.keys_NSHC[layer], self._kv.values_NSHC[layer]
        out_TQ = q_THC.new_empty(q_THC.shape[0], q_THC.shape[1] * q_THC.shape[2])
        if inputs.has_padding:
            out_TQ.zero_()  # tokens of no sequence are not attended to, and must be numbers
        if n:
            decode_attention(
                q_THC[:n], keys_NSHC, values_NSHC, inputs.block_tables_BM[:n], inputs.context_lens_B[:n],
                max_context=self._max_context, out_BQ=out_TQ[:n],
                arrivals_X=self._arrivals_X if n <= MAX_DECODE_ROWS else None,
            )  # fmt: skip
        if self._max_query_len:
            prefill_attention(
                q_THC[n:], keys_NSHC, values_NSHC, inputs.block_tables_BM[n:], self._cu_seqlens_B1,
                inputs.context_lens_B[n:], max_query_len=self._max_query_len, out_TQ=out_TQ[n:],
            )  # fmt: skip
        return out_TQ
