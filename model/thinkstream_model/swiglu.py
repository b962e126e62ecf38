"""The gate of a SwiGLU MLP, of operations that do not depend on a row's place in memory.

T rows, I inner width.
"""

from __future__ import annotations

from torch import Tensor


def silu_and_multiply(gate_up_T2I: Tensor) -> Tensor:
    """``silu(gate) * up``, [T, I]; the columns of the gate come first.

    Made of ``exp``, whose vector and scalar code agree bit for bit, where those of ``silu`` do not.
    """
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
    gate32_TI = gate_TI.float()
    return (gate32_TI / gate32_TI.neg().exp_().add_(1.0)).to(up_TI.dtype) * up_TI
