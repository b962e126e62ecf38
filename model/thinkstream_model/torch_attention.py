"""Attention over the paged cache in plain torch, the same for prefill, chunks and decode.

Queries go in tiles of 16 rows (a row is one token and one head of a key head's group), keys in fixed
blocks of 64 counted from the sequence's start, with a running softmax over the blocks. So the sums that
make a row are the same whoever shares its step. Keys behind a row's own position weigh exactly zero.

T tokens, N tiles (most key blocks first), Q tokens per tile, R rows per tile, J key heads, G query heads
per key head, C width of a head, H query heads, S keys of a block, X rows of a layer's cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ThinkerConfig
from .inputs import StepInputs
from .kv_cache import KVCache
from .rms_norm import rms_norm
from .rope import Rotation, rotate

QUERY_ROWS = 16
KEY_BLOCK = 64


class _KeyBlock(NamedTuple):
    """One block of keys, for the tiles that reach it, which come first; a tile stands for J in a row."""

    rows_NS: Tensor  #: rows of a layer's cache seen as [X, C]
    stale_NS1: Tensor | None  #: keys behind a tile's last: what is left of others; None where there are none
    hidden_NRS: Tensor | None  #: keys that a row must not see; None where all see all


class PagedAttention:
    """``StepAttention`` in torch.

    Args:
        config: The Thinker's shape.
        inputs: The step's tokens.
        kv: The cache.
        rotary: Rotation of every position.
    """

    def __init__(self, config: ThinkerConfig, inputs: StepInputs, kv: KVCache, rotary: Rotation) -> None:
        self._config, self._kv = config, kv
        self._slots_T = inputs.slot_mapping_T
        self._rotation = rotary.at(inputs.positions_T, kv.keys_NSHC[0].dtype)
        self._group = config.num_heads // config.num_kv_heads
        self._tile_tokens = max(1, QUERY_ROWS // self._group)
        self._padding = -self._tile_tokens * self._group % QUERY_ROWS
        self._plan(inputs)

    def prologue(self, qkv_TQ: Tensor, q_norm_C: Tensor, k_norm_C: Tensor, layer: int) -> Tensor:
        """See ``StepAttention.prologue``."""
        config = self._config
        num_q, num_kv, width = config.num_heads, config.num_kv_heads, config.head_dim
        heads_THC = qkv_TQ.view(-1, num_q + 2 * num_kv, width)
        weight_HC = torch.cat((q_norm_C.expand(num_q, -1), k_norm_C.expand(num_kv, -1)))
        qk_THC, v_TJC = heads_THC.tensor_split([num_q + num_kv], dim=1)
        qk_THC = rotate(rms_norm(qk_THC, weight_HC, config.rms_norm_eps), self._rotation)
        q_THC, k_TJC = qk_THC.tensor_split([num_q], dim=1)
        keys_XJC = self._kv.keys_NSHC[layer].view(-1, num_kv, width)
        keys_XJC.index_copy_(0, self._slots_T, k_TJC)
        values_XJC = self._kv.values_NSHC[layer].view(-1, num_kv, width)
        values_XJC.index_copy_(0, self._slots_T, v_TJC)
        return q_THC

    def attend(self, q_THC: Tensor, layer: int) -> Tensor:
        """See ``StepAttention.attend``."""
        width = self._config.head_dim
        keys_XC = self._kv.keys_NSHC[layer].view(-1, width)
        values_XC = self._kv.values_NSHC[layer].view(-1, width)
        q_NRC = self._to_tiles(q_THC)
        softmax = _RunningSoftmax(self._num_used_rows)
        for block in self._blocks:
            num_tiles = block.rows_NS.shape[0]
            scores_NRS = _products(q_NRC[:num_tiles], _take(keys_XC, block.rows_NS).transpose(1, 2)).float()
            used_NRS = scores_NRS[:, : self._num_used_rows]
            used_NRS *= width**-0.5
            if block.hidden_NRS is not None:
                used_NRS.masked_fill_(block.hidden_NRS, float("-inf"))
            values_NSC = _take(values_XC, block.rows_NS)
            if block.stale_NS1 is not None:
                values_NSC.masked_fill_(block.stale_NS1, 0.0)  # zero times what is no number is no number
            softmax.add(scores_NRS, values_NSC)
        return self._to_tokens(softmax.mean().to(q_THC.dtype))

    def _to_tiles(self, q_THC: Tensor) -> Tensor:
        """Bring queries into tiles, [N * J, R, C]; rows that pad a tile repeat the step's first token."""
        num_kv, width = self._config.num_kv_heads, self._config.head_dim
        q_NQJGC = q_THC.contiguous().index_select(0, self._tokens_NQ.flatten())
        q_NQJGC = q_NQJGC.view(-1, self._tile_tokens, num_kv, self._group, width)
        q_NRC = q_NQJGC.transpose(1, 2).reshape(-1, self._tile_tokens * self._group, width)
        return F.pad(q_NRC, (0, 0, 0, self._padding)) if self._padding else q_NRC

    def _to_tokens(self, out_NRC: Tensor) -> Tensor:
        """Undo ``_to_tiles`` and put the heads side by side, [T, H * C]."""
        num_kv, width = self._config.num_kv_heads, self._config.head_dim
        out_NJQGC = out_NRC.view(-1, num_kv, self._num_used_tokens, self._group, width)
        return out_NJQGC.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, self._places_T)

    def _plan(self, inputs: StepInputs) -> None:
        """Cut the step into tiles and its keys into blocks."""
        device = inputs.input_ids_T.device
        tiles = sorted(_tiles(inputs, self._tile_tokens), key=lambda tile: -tile.num_keys)
        # Tile n, place q holds token first + q; beyond the tile's own tokens it repeats token 0.
        tokens = [
            [t.first_token + q if q < t.num_tokens else 0 for q in range(self._tile_tokens)] for t in tiles
        ]
        self._num_used_tokens = max(tile.num_tokens for tile in tiles)
        self._num_used_rows = self._num_used_tokens * self._group
        places = [0] * sum(inputs.query_lens)
        for n, tile in enumerate(tiles):
            for q in range(tile.num_tokens):
                places[tile.first_token + q] = n * self._num_used_tokens + q
        self._tokens_NQ = torch.tensor(tokens, device=device)
        self._places_T = torch.tensor(places, device=device)
        self._blocks = self._key_blocks(inputs, tiles)

    def _key_blocks(self, inputs: StepInputs, tiles: list[_Tile]) -> list[_KeyBlock]:
        num_kv, device = self._config.num_kv_heads, inputs.input_ids_T.device
        sequences_N = torch.tensor([tile.sequence for tile in tiles], device=device)
        used_NQ = self._tokens_NQ[:, : self._num_used_tokens]
        positions_NR = inputs.positions_T[used_NQ].repeat_interleave(self._group, dim=1)
        num_keys_N1 = torch.tensor([[tile.num_keys] for tile in tiles], device=device)
        heads_J = torch.arange(num_kv, device=device)
        blocks: list[_KeyBlock] = []
        for start in range(0, tiles[0].num_keys, KEY_BLOCK):
            count = sum(tile.num_keys > start for tile in tiles)
            keys_S = torch.arange(start, start + KEY_BLOCK, device=device)
            slots_BS = _slots(inputs.block_tables_BM, keys_S, self._kv.block_size)
            slots_NS = slots_BS[sequences_N[:count]]
            rows_NS = (slots_NS.unsqueeze(1) * num_kv + heads_J.unsqueeze(1)).flatten(0, 1)
            hidden_NRS: Tensor | None = None
            if any(tile.first_position < start + KEY_BLOCK - 1 for tile in tiles[:count]):
                hidden_NRS = keys_S > positions_NR[:count].unsqueeze(-1)
                hidden_NRS = hidden_NRS.repeat_interleave(num_kv, dim=0)
            stale_NS1: Tensor | None = None
            if any(tile.num_keys < start + KEY_BLOCK for tile in tiles[:count]):
                stale_NS = keys_S >= num_keys_N1[:count]
                stale_NS1 = stale_NS.repeat_interleave(num_kv, dim=0).unsqueeze(-1)
            blocks.append(_KeyBlock(rows_NS, stale_NS1, hidden_NRS))
        return blocks


class _Tile(NamedTuple):
    """Neighbouring tokens of one sequence."""

    sequence: int
    first_token: int  #: row of the step
    num_tokens: int
    first_position: int
    num_keys: int  #: keys that the last token sees


def _tiles(inputs: StepInputs, tile_tokens: int) -> list[_Tile]:
    tiles: list[_Tile] = []
    token = 0
    for sequence, (query_len, context_len) in enumerate(
        zip(inputs.query_lens, inputs.context_lens, strict=True)
    ):
        position = context_len - query_len
        for offset in range(0, query_len, tile_tokens):
            count = min(tile_tokens, query_len - offset)
            first = position + offset
            tiles.append(_Tile(sequence, token + offset, count, first, first + count))
        token += query_len
    return tiles


def _slots(block_tables_BM: Tensor, positions_S: Tensor, block_size: int) -> Tensor:
    """Slots of these positions in every sequence; a position beyond the table gives some valid slot."""
    blocks_S = (positions_S // block_size).clamp(max=block_tables_BM.shape[1] - 1)
    return block_tables_BM[:, blocks_S].long() * block_size + positions_S % block_size


class _RunningSoftmax:
    """Softmax-weighted sum of values, one block of keys after the other.

    Later blocks may hold fewer tiles: those that reach them come first. Rows of a tile that no token of
    the step uses go through the matrix products and nowhere else.
    """

    def __init__(self, num_used_rows: int) -> None:
        self._num_used_rows = num_used_rows
        self._max_NR1: Tensor | None = None
        self._sum_NR1: Tensor
        self._out_NRC: Tensor

    def add(self, scores_NRS: Tensor, values_NSC: Tensor) -> None:
        """Take in one more block; the scores are overwritten."""
        count, used = scores_NRS.shape[0], self._num_used_rows
        used_NRS = scores_NRS[:, :used]
        top_NR1 = used_NRS.amax(dim=-1, keepdim=True)
        if self._max_NR1 is not None:
            top_NR1 = torch.maximum(self._max_NR1[:count], top_NR1)
        used_NRS.sub_(top_NR1).exp_()
        sum_NR1 = used_NRS.sum(dim=-1, keepdim=True)
        out_NRC = _products(scores_NRS.to(values_NSC.dtype), values_NSC)[:, :used]
        if self._max_NR1 is None:
            self._max_NR1, self._sum_NR1, self._out_NRC = top_NR1, sum_NR1, out_NRC.float().contiguous()
            return
        shrink_NR1 = (self._max_NR1[:count] - top_NR1).exp_()
        self._sum_NR1[:count].mul_(shrink_NR1).add_(sum_NR1)
        self._out_NRC[:count].mul_(shrink_NR1).add_(out_NRC)
        self._max_NR1[:count] = top_NR1

    def mean(self) -> Tensor:
        """The weighted means, [N * J, used R, C]."""
        return self._out_NRC / self._sum_NR1


def _take(cache_XC: Tensor, rows_NS: Tensor) -> Tensor:
    return cache_XC.index_select(0, rows_NS.flatten()).view(*rows_NS.shape, -1)


def _products(left_NRC: Tensor, right_NCS: Tensor) -> Tensor:
    """Multiply tile by tile; a library's batched matmul treats each alike, however many there are."""
    return torch.bmm(left_NRC, right_NCS)
