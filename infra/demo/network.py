"""The Thinker's mathematics once more, small and differentiable, for training alone.

Serving goes through `thinkstream_model`; this file repeats its formulas with every expert computed for
every token, which needs no gathers and is cheap at this size. Parameters carry the names
of the released layout, experts stacked.

Letters: N tokens of all rows, R rows, T places in a row, D model, H heads, G key heads, C head size,
E experts, K experts per token, I width of an expert, W twice that, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the demo Thinker; heads, experts and vocabulary divide by four."""

    vocab_size: int = 3072
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096


class Attention(nn.Module):
    """Causal attention inside each conversation of a row, with normed queries and keys and RoPE."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x_RTD: Tensor, rotation: tuple[Tensor, Tensor], mask_R1TT: Tensor) -> Tensor:
        """Return the attention's contribution to the residual stream, ``[R, T, D]``."""
        shape = self._shape
        num_rows, length, _ = x_RTD.shape
        q = self.q_proj(x_RTD).view(num_rows, length, shape.num_heads, shape.head_dim)
        k = self.k_proj(x_RTD).view(num_rows, length, shape.num_kv_heads, shape.head_dim)
        v = self.v_proj(x_RTD).view(num_rows, length, shape.num_kv_heads, shape.head_dim)
        q = _rotate(self.q_norm(q.float()).transpose(1, 2), rotation).to(v.dtype)
        k = _rotate(self.k_norm(k.float()).transpose(1, 2), rotation).to(v.dtype)
        group = shape.num_heads // shape.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.transpose(1, 2).repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R1TT)
        return F.linear(out.transpose(1, 2).reshape(num_rows, length, -1), self.o_proj.weight)


class Experts(nn.Module):
    """Softmax router, best ``k`` renormalised, all experts computed; also the balance loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._k = shape.num_experts_per_tok
        hidden, width = shape.hidden_size, shape.moe_intermediate_size
        self.gate = nn.Linear(hidden, shape.num_experts, bias=False)
        self.gate_up_proj = nn.Parameter(torch.randn(shape.num_experts, 2 * width, hidden) * hidden**-0.5)
        self.down_proj = nn.Parameter(torch.randn(shape.num_experts, hidden, width) * 0.3 * width**-0.5)

    def forward(self, x_RTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' contribution ``[R, T, D]`` and the balance loss, one when even."""
        x_ND = x_RTD.flatten(0, 1)
        probs_NE = self.gate(x_ND).float().softmax(-1)
        top_NK, ids_NK = probs_NE.topk(self._k)
        chosen_NE = torch.zeros_like(probs_NE).scatter(1, ids_NK, 1.0)
        weights_NE = probs_NE * chosen_NE / top_NK.sum(-1, keepdim=True)
        num_experts = probs_NE.shape[1]
        balance = num_experts * (chosen_NE.mean(0) / self._k * probs_NE.mean(0)).sum()
        # All experts side by side are one wide SwiGLU whose inner units are weighted by their expert.
        inner_NEW = F.linear(x_ND, self.gate_up_proj.flatten(0, 1)).view(len(x_ND), num_experts, -1)
        gate_NEI, up_NEI = inner_NEW.chunk(2, dim=-1)
        inner_NEI = F.silu(gate_NEI) * up_NEI * weights_NE.unsqueeze(-1).to(up_NEI.dtype)
        out_ND = F.linear(inner_NEI.flatten(1), self.down_proj.transpose(0, 1).flatten(1))
        return out_ND.view_as(x_RTD), balance


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Experts(shape)

    def forward(
        self, x_RTD: Tensor, rotation: tuple[Tensor, Tensor], mask_R1TT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream after the layer and the layer's balance loss."""
        x_RTD = x_RTD + self.self_attn(self.input_layernorm(x_RTD), rotation, mask_R1TT)
        out_RTD, balance = self.mlp(self.post_attention_layernorm(x_RTD))
        return x_RTD + out_RTD, balance


class Network(nn.Module):
    """Embedding, layers, final norm and head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        nn.init.normal_(self.lm_head.weight, std=0.5 * shape.hidden_size**-0.5)

    def forward(
        self, ids_RT: Tensor, positions_RT: Tensor, documents_RT: Tensor, wanted_RT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run rows of packed conversations.

        Args:
            ids_RT: int64 token ids.
            positions_RT: int64 places for the rotation.
            documents_RT: int64, which conversation of its row a token belongs to; tokens see only their own.
            wanted_RT: bool, the places whose logits are wanted.

        Returns:
            Logits ``[places, V]`` and the mean balance loss.
        """
        same_RTT = documents_RT.unsqueeze(2) == documents_RT.unsqueeze(1)
        mask_R1TT = (same_RTT & torch.ones_like(same_RTT[0]).tril()).unsqueeze(1)
        rotation = _rotation(self.shape, positions_RT)
        x_RTD = self.embed_tokens(ids_RT)
        balances: list[Tensor] = []
        for layer in self.layers:
            x_RTD, balance = layer(x_RTD, rotation, mask_R1TT)
            balances.append(balance)
        return self.lm_head(self.norm(x_RTD[wanted_RT])), torch.stack(balances).mean()


def _rotation(shape: Shape, positions_RT: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, ``[R, 1, T, C]``."""
    steps = torch.arange(0, shape.head_dim, 2, device=positions_RT.device, dtype=torch.float32)
    angles = positions_RT[:, None, :, None].float() * shape.rope_theta ** -(steps / shape.head_dim)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
