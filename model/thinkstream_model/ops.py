"""The operations a Thinker is made of, and the seam behind which each device has its own.

The model file calls these in order and knows nothing of how they are done. They are cut where a kernel
gains by fusing: the norm with the residual's addition, query and key norm with rotation and the write
into the cache, the router's softmax with its top-k.

T tokens of the step, D hidden width, O any output width, Q width of queries, keys and values together,
H query heads, C width of a head, E experts, K experts per token, I inner width.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .inputs import StepInputs
from .kv_cache import KVCache


class Routing(NamedTuple):
    """Which experts each row goes to.

    Attributes:
        expert_ids_TK: int64, logical experts, the most likely first.
        weights_TK: Their shares in the row's output, in the activations' dtype.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor


class StepAttention(Protocol):
    """Attention of one step: what all layers of the step share is worked out once."""

    def prologue(self, qkv_TQ: Tensor, q_norm_C: Tensor, k_norm_C: Tensor, layer: int) -> Tensor:
        """Norm and rotate queries and keys per head, write keys and values into the cache.

        Returns:
            The queries, [T, H, C].
        """
        ...

    def attend(self, q_THC: Tensor, layer: int) -> Tensor:
        """Let every token attend to the keys of its sequence up to its own.

        Returns:
            The heads' outputs side by side, [T, H * C].
        """
        ...


class Ops(Protocol):
    """All arithmetic of a forward pass. Results are new tensors; weights are never changed."""

    def embed(self, input_ids_T: Tensor, embedding_VD: Tensor) -> Tensor:
        """Look the tokens up, [T, D]."""
        ...

    def attention(self, inputs: StepInputs, kv: KVCache) -> StepAttention:
        """Prepare the attention of one step."""
        ...

    def rms_norm(self, hidden_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, in float32, then by the weight in the row's dtype."""
        ...

    def add_rms_norm(
        self, hidden_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream and norm the sum.

        Returns:
            The normed sum and the sum, both [T, D].
        """
        ...

    def linear(self, hidden_TD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply every row by a matrix: [T, O]."""
        ...

    def swiglu(self, hidden_TD: Tensor, gate_up_2ID: Tensor, down_DI: Tensor) -> Tensor:
        """The dense MLP: ``down(silu(gate x) * up x)``, [T, D]."""
        ...

    def route(self, hidden_TD: Tensor, router_ED: Tensor, top_k: int, *, renormalize: bool) -> Routing:
        """Softmax over all experts in float32, the top k of it, scaled to sum to 1 where asked."""
        ...

    def experts(self, hidden_TD: Tensor, slots_TK: Tensor, gate_up_E2ID: Tensor, down_EDI: Tensor) -> Tensor:
        """Send each row through its k experts.

        Args:
            hidden_TD: The rows.
            slots_TK: int64, places in the stacked weights.
            gate_up_E2ID: Gate and up of the experts that are here.
            down_EDI: Down of the experts that are here.

        Returns:
            The outputs apart, not yet weighted, [T, K, D].
        """
        ...

    def combine(self, outputs_TKD: Tensor, weights_TK: Tensor) -> Tensor:
        """Weight the experts' outputs and sum them in the order of k, [T, D]."""
        ...
