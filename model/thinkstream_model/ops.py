"""The operations a Thinker is made of, the seam behind which each device has its own, and that of experts.

The model file calls these in order and knows nothing of how they are done. They are cut where a kernel
gains by fusing: the norm with the residual's addition, query and key norm with rotation and the write
into the cache, the router's softmax with its top-k.

T tokens of the step, R rows that arrived at their experts, D hidden width, O any output width, Q width of
queries, keys and values together, H query heads, C width of a head, E experts, K experts per token, I inner
width, P parts of a sum, L pairs of one expert at most, S rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from .inputs import StepInputs
from .kv_cache import KVCache
from .sampler import Sampled, SamplingInputs


class Parts(NamedTuple):
    """A sum that is still to be done, in the order of p; the next to read the row does it on the way.

    Attributes:
        values_TPD: The parts, in any strides.
        weights_TP: float32, what each part counts; None where all count once.
    """

    values_TPD: Tensor
    weights_TP: Tensor | None = None


Addend = Tensor | Parts
"""What is to be added to the residual stream."""


class ExpertLists(NamedTuple):
    """Which rows each expert gets, as a device works it out. The order within a list means nothing.

    Attributes:
        counts_E: int32, rows of each expert.
        pairs_EL: int32, theirs as pairs ``row * K + k``; what is behind the count is undefined.
    """

    counts_E: Tensor
    pairs_EL: Tensor


class Routing(NamedTuple):
    """Which experts each row goes to.

    Attributes:
        expert_ids_TK: Integers, logical experts, the most likely first.
        weights_TK: Their shares in the row's output.
        lists: The same by expert, where the device has worked it out beside.
    """

    expert_ids_TK: Tensor
    weights_TK: Tensor
    lists: ExpertLists | None = None


class Dispatched(NamedTuple):
    """Rows that are to go through experts of this rank.

    Attributes:
        hidden_RD: The rows.
        slots_RK: Integers, their places in this rank's stacked weights.
        lists: The same by slot, where that is known already.
    """

    hidden_RD: Tensor
    slots_RK: Tensor
    lists: ExpertLists | None = None


class Exchange(Protocol):
    """How rows reach their experts and come home; knows where experts are. The model sees nothing else."""

    def dispatch(self, layer: int, hidden_TD: Tensor, routing: Routing) -> Dispatched:
        """Send every row to the ranks of its experts, whose numbers become slots of their stacked weights."""
        ...

    def combine(self, layer: int, outputs_RKD: Tensor, routing: Routing) -> Addend:
        """Bring the experts' outputs home and sum them, weighted, in the order of k: [T, D]."""
        ...


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
    """All arithmetic of a forward pass. Results are new tensors; weights are never changed.

    Attributes:
        is_capturable: Whether a step can become a CUDA graph: its launches follow from the step's shape
            alone, and none waits for the host.
    """

    is_capturable: bool

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
        self, addend_TD: Addend, residual_TD: Tensor, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Add to the residual stream and norm the sum.

        Returns:
            The normed sum and the sum, both [T, D].
        """
        ...

    def linear(self, hidden_TD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply every row by a matrix: [T, O]."""
        ...

    def project(self, hidden_TQ: Tensor, weight_DQ: Tensor) -> Addend:
        """Multiply every row by a matrix, for the residual stream: [T, D]."""
        ...

    def swiglu(self, hidden_TD: Tensor, gate_up_2ID: Tensor, down_DI: Tensor) -> Addend:
        """The dense MLP: ``down(silu(gate x) * up x)``, [T, D]."""
        ...

    def route(self, hidden_TD: Tensor, router_ED: Tensor, top_k: int, *, renormalize: bool) -> Routing:
        """Softmax over all experts in float32, the top k of it, scaled to sum to 1 where asked."""
        ...

    def experts(
        self,
        hidden_TD: Tensor,
        slots_TK: Tensor,
        gate_up_E2ID: Tensor,
        down_EDI: Tensor,
        lists: ExpertLists | None = None,
    ) -> Tensor:
        """Send each row through its k experts.

        Args:
            hidden_TD: The rows.
            slots_TK: Integers, places in the stacked weights.
            gate_up_E2ID: Gate and up of the experts that are here.
            down_EDI: Down of the experts that are here.
            lists: The slots by expert, where they are known.

        Returns:
            The outputs apart, not yet weighted, [T, K, D].
        """
        ...

    def combine(self, outputs_TKD: Tensor, weights_TK: Tensor) -> Addend:
        """Weight the experts' outputs and sum them in the order of k, [T, D]."""
        ...

    def logits(self, hidden_SD: Tensor, lm_head_VD: Tensor) -> Tensor:
        """Multiply rows by the head: [S, V], float32."""
        ...

    def sample(self, logits_SV: Tensor, inputs: SamplingInputs, num_valid_ids: int) -> Sampled:
        """Choose one token per row, as ``sampler.sample`` says."""
        ...
