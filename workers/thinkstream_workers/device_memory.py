"""What a GPU must keep free beside weights and KV cache: what steps take while they run, and their graphs.

Worked out: each figure is the most that the kernels have at one time. What graphs and code take by themselves
is in no tensor: these two figures stand for what was measured, with some room. Graphs have a memory of their
own, which they share, so what a step takes counts twice where it may be captured.
"""

from __future__ import annotations

from thinkstream_model.config import ThinkerConfig
from thinkstream_model.step_sizes import MAX_ROWS_IN_PARTS, NUM_PARTS, NUM_ROUTER_PARTS, SPLIT_KEYS

from .buckets import MAX_PROMPT_TOKENS, most_sequences, most_tokens, rows_beside_prompts
from .engine_config import EngineConfig
from .step_graphs import MAX_GRAPHS

_GRAPH_BYTES = 5 << 20
"""Of one graph: some five hundred to a thousand launches and their arguments, 3.5 to 4.5 MB on an H100."""
_CODE_BYTES = 256 << 20
"""Kernels that are loaded at first use, and what an allocator cannot use of what it holds."""
_LOGITS_OF_EXTRAS = 8
"""Logits' worth of memory that penalties and biases take at their height."""
_CHUNK_IDS, _CHUNK_BYTES = 2_048, 2_304
"""Ids that filters take together, and what they keep of these: most of it values that may be top-p's."""
_MAX_SHARE = 0.25
"""Of what is free. Beyond, a step that must be cut in two is better than no room for keys and values."""


def reserve_bytes(config: ThinkerConfig, limits: EngineConfig, free_bytes: int, dtype_bytes: int) -> int:
    """Memory that the KV cache must leave.

    Args:
        config: The Thinker's shape.
        limits: The engine's.
        free_bytes: What is free now that the weights are there.
        dtype_bytes: Bytes of one number of the activations.
    """
    num_sampled = most_sequences(limits.slots)
    logits_bytes = num_sampled * config.vocab_size * 4
    partial_bytes = _partial_bytes(config, limits, rows_beside_prompts(limits.slots))
    # The sampler starts when the layers have given back what they took.
    launched = max(
        step_bytes(config, most_tokens(limits.slots, limits.step_tokens), dtype_bytes),
        sampler_bytes(config, num_sampled, has_extras=True),
    )
    launched += logits_bytes + partial_bytes
    captured = max(
        step_bytes(config, most_tokens(limits.slots, MAX_PROMPT_TOKENS), dtype_bytes),
        sampler_bytes(config, num_sampled, has_extras=False),
    )
    # The graphs' partial results lie in pieces that grew with the contexts: each is twice the one before.
    captured += logits_bytes + 2 * partial_bytes + MAX_GRAPHS * _GRAPH_BYTES
    handed_over = logits_bytes  # where a graph leaves them for the sampler
    return min(launched + captured + handed_over + _CODE_BYTES, int(free_bytes * _MAX_SHARE))


def step_bytes(config: ThinkerConfig, num_tokens: int, dtype_bytes: int) -> int:
    """Activations of a step, its logits and what attention finds in splits left out.

    Args:
        config: The Thinker's shape.
        num_tokens: The step's.
        dtype_bytes: Bytes of one number of the activations.
    """
    parts = 4 * NUM_PARTS * config.hidden_size  # in float32, of what attention adds to the residual stream
    return num_tokens * _token_bytes(config, dtype_bytes) + min(num_tokens, MAX_ROWS_IN_PARTS) * parts


def sampler_bytes(config: ThinkerConfig, num_rows: int, *, has_extras: bool) -> int:
    """What choosing tokens takes, the logits left out.

    Args:
        config: The Thinker's shape.
        num_rows: Rows of logits.
        has_extras: Whether there may be penalties and biases, or logprobs asked for.
    """
    filters = -(-config.vocab_size // _CHUNK_IDS) * _CHUNK_BYTES
    # Filters start when penalties have given back all but the logits they have changed.
    extras = _LOGITS_OF_EXTRAS * config.vocab_size * 4 if has_extras else 0
    return num_rows * max(filters, extras)


def _token_bytes(config: ThinkerConfig, dtype_bytes: int) -> int:
    """Activations of one token: the residual stream with its norms, and the widest that lies beside them."""
    # Queries, keys and values side by side, the queries anew, and the heads' outputs.
    attention = (3 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    experts = config.num_experts_per_tok * (config.moe_intermediate_size + config.hidden_size)
    dense = 8 * config.intermediate_size
    widest = max(attention, experts, dense)
    # int32 places in its experts' lists, and its router's logits in float32.
    routing = 4 * config.num_experts * (1 + NUM_ROUTER_PARTS)
    return (4 * config.hidden_size + widest) * dtype_bytes + routing


def _partial_bytes(config: ThinkerConfig, limits: EngineConfig, num_rows: int) -> int:
    """What attention finds in the splits of the longest context, for as many rows as there may be."""
    longest = min(limits.max_context or config.max_position_embeddings, config.max_position_embeddings)
    num_splits = -(-longest // SPLIT_KEYS)
    return num_rows * num_splits * config.num_heads * (config.head_dim + 2) * 4
