"""The Thinker: token ids in, logits out.

A decoder of RMS norms, grouped-query attention with normed queries and keys, rotary positions, and in
each layer either a mixture of experts or one dense SwiGLU MLP. It does not branch on the device: all
arithmetic is behind ``Ops``, all movement between devices behind ``Exchange``.

T tokens of the step, D hidden width, S rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ThinkerConfig
from .device_ops import ops_for
from .exchange import LocalExchange
from .experts import Experts, Router
from .inputs import StepInputs
from .kv_cache import KVCache
from .ops import Addend, Exchange, Ops, StepAttention
from .parameters import AttentionWeights, DenseWeights, MoeWeights, ThinkerWeights
from .sampler import Sampled, SamplingInputs


class Thinker:
    """Weights on one device and the way through them.

    Args:
        weights: All parameters, on one device and of one dtype.
        ops: The operations; where none are given, those that fit the device.
        exchange: The way to the experts; where none is given, all are here.
    """

    def __init__(
        self, weights: ThinkerWeights, ops: Ops | None = None, exchange: Exchange | None = None
    ) -> None:
        config = weights.config
        self.config: ThinkerConfig = config
        self.weights = weights
        self._ops = ops or ops_for(config, weights.embedding_VD.device)
        self._exchange = exchange or LocalExchange(self._ops)
        self._router = Router(self._ops, config)
        self._experts = Experts(self._ops, self._exchange)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding_VD.device

    @property
    def is_capturable(self) -> bool:
        """Whether its steps can become CUDA graphs."""
        return self.device.type == "cuda" and self._ops.is_capturable

    @property
    def dtype(self) -> torch.dtype:
        """Kind of the weights, the activations and the cache."""
        return self.weights.embedding_VD.dtype

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, kv: KVCache) -> Tensor:
        """Compute one step: write the tokens' keys and values, return the logits that are wanted.

        Args:
            inputs: The step's tokens and where they belong.
            kv: The cache, changed in place.

        Returns:
            Logits of ``inputs.output_rows_S``, [S, V], float32, padding rows of the vocabulary included.
        """
        ops, layers, eps = self._ops, self.weights.layers, self.config.rms_norm_eps
        next_norms_D = [layer.input_norm_D for layer in layers[1:]] + [self.weights.norm_D]
        attention = ops.attention(inputs, kv)
        residual_TD = ops.embed(inputs.input_ids_T, self.weights.embedding_VD)
        hidden_TD = ops.rms_norm(residual_TD, layers[0].input_norm_D, eps)
        for number, (layer, next_norm_D) in enumerate(zip(layers, next_norms_D, strict=True)):
            # No name for what is added: the experts' outputs, apart, must not outlive their sum.
            hidden_TD, residual_TD = ops.add_rms_norm(
                self._attend(number, hidden_TD, layer.attention, attention),
                residual_TD,
                layer.post_attention_norm_D,
                eps,
            )
            hidden_TD, residual_TD = ops.add_rms_norm(
                self._mlp(number, hidden_TD, layer.mlp), residual_TD, next_norm_D, eps
            )
        return ops.logits(hidden_TD.index_select(0, inputs.output_rows_S), self.weights.lm_head_VD)

    @torch.inference_mode()
    def sample(self, logits_SV: Tensor, inputs: SamplingInputs, *, num_valid_ids: int) -> Sampled:
        """Choose one token per row of the logits, as ``sampler.sample`` says, without waiting for it."""
        return self._ops.sample(logits_SV, inputs, num_valid_ids)

    def _attend(
        self, layer: int, hidden_TD: Tensor, weights: AttentionWeights, attention: StepAttention
    ) -> Addend:
        qkv_TQ = self._ops.linear(hidden_TD, weights.qkv_QD)
        q_THC = attention.prologue(qkv_TQ, weights.q_norm_C, weights.k_norm_C, layer)
        return self._ops.project(attention.attend(q_THC, layer), weights.out_DQ)

    def _mlp(self, layer: int, hidden_TD: Tensor, weights: DenseWeights | MoeWeights) -> Addend:
        if isinstance(weights, DenseWeights):
            return self._ops.swiglu(hidden_TD, weights.gate_up_2ID, weights.down_DI)
        return self._experts(layer, hidden_TD, self._router(hidden_TD, weights), weights)


def random_thinker(
    config: ThinkerConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Thinker:
    """Make a Thinker of random weights, with the operations that fit its device; see ``random_weights``."""
    return Thinker(random_weights(config, device=device, dtype=dtype, seed=seed))


def random_weights(
    config: ThinkerConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> ThinkerWeights:
    """Draw random weights, on the device itself.

    Matrices are scaled so that activations keep their size through the layers and the router's choices
    differ from token to token. The same seed gives other weights on another kind of device.

    Args:
        config: The shape.
        device: Where to make it.
        dtype: Kind of its numbers.
        seed: Seed of the device's generator.
    """
    weights = ThinkerWeights.empty(config, device, dtype)
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, tensor in weights.named_destinations().items():
        if tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            scale = 1.0 if name == "embed_tokens.weight" else tensor.shape[-1] ** -0.5
            tensor.normal_(0.0, scale, generator=generator)
    return weights
