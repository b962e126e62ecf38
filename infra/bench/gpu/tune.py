"""Tries tile choices of the matrix kernels on a card: what the tables in the kernels' files are made from.

    for i in 0 1 2 3 4 5 6 7; do python -m infra.bench.gpu.tune --compile $i/8 & done; wait
    python -m infra.bench.gpu.tune

Compiling takes most of the time, so several processes fill Triton's cache first. No choice changes a bit of
any result, so the fastest can be taken without a second look. Hopper's own kernels have one tile each and
stand aside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from thinkstream_model.kernels import attention_prefill, dense, experts, many_rows
from thinkstream_model.kernels.router import lists_of
from thinkstream_model.kernels.tiles import Tile

from .ceilings import timed_ms

_HIDDEN, _QKV, _HEADS, _INNER, _NUM_EXPERTS, _TOP_K = 2_048, 5_120, 4_096, 768, 128, 8

_DENSE_NARROW = (
    Tile(64, 64, 128, 4, 3), Tile(64, 64, 128, 4, 4), Tile(128, 64, 128, 4, 3), Tile(128, 64, 64, 4, 4),
    Tile(128, 128, 64, 8, 4), Tile(64, 128, 64, 4, 4), Tile(64, 128, 128, 8, 3), Tile(256, 64, 64, 8, 3),
)  # fmt: skip
_DENSE_WIDE = (
    Tile(64, 64, 64, 4, 4), Tile(128, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4), Tile(128, 128, 64, 8, 4),
    Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 4), Tile(128, 256, 64, 8, 3), Tile(128, 256, 64, 8, 4),
    Tile(256, 128, 64, 8, 3), Tile(256, 128, 64, 8, 4), Tile(64, 256, 64, 4, 4), Tile(128, 64, 128, 4, 3),
)  # fmt: skip
_EXPERTS_FEW = (
    Tile(16, 64, 128, 4, 4), Tile(32, 64, 128, 4, 2), Tile(32, 64, 128, 4, 3), Tile(32, 64, 128, 4, 4),
    Tile(64, 64, 128, 4, 2), Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 8, 3), Tile(64, 128, 64, 4, 3),
)  # fmt: skip
_EXPERTS_MANY = (
    Tile(64, 64, 128, 4, 2), Tile(64, 128, 64, 4, 3), Tile(64, 128, 64, 8, 4), Tile(128, 64, 64, 4, 3),
    Tile(128, 64, 64, 4, 4), Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 4, 3),
    Tile(256, 64, 64, 8, 3), Tile(256, 64, 64, 4, 3), Tile(256, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3),
)  # fmt: skip


def main() -> None:
    """Print the fastest tiles of each kernel and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--compile", metavar="I/N", help="only compile every Nth choice, from the Ith on")
    tuner = _Tuner(parser.parse_args().compile)
    attention_prefill.hopper_kernels.is_usable = many_rows.hopper_kernels.is_usable = False
    for num_rows in (128, 256, 2_048, 8_192):
        _tune_dense(tuner, num_rows)
    for num_rows in (256, 2_048, 8_192):
        _tune_experts(tuner, num_rows)
    _tune_attention(tuner)


class _Tuner:
    """Times choices, or only compiles some of them.

    Args:
        shard: ``I/N`` to compile, None to time.
    """

    def __init__(self, shard: str | None) -> None:
        self.num_layers = 1 if shard else 6
        self._shard = [int(number) for number in shard.split("/")] if shard else None
        self._num_choices = 0

    def best(
        self, name: str, choices: Sequence[Any], choose: Callable[[Any], None], run: Callable[[int], object]
    ) -> None:
        """Print the three fastest choices."""
        times: list[tuple[float, Any]] = []
        for choice in choices:
            self._num_choices += 1
            if self._shard and self._num_choices % self._shard[1] != self._shard[0]:
                continue
            choose(choice)
            try:
                run(0)
                times.append((float("inf") if self._shard else self._time_us(run), choice))
            except Exception as error:  # does not fit this card
                times.append((float("inf"), (type(error).__name__,)))
        if not self._shard:
            for time_us, choice in sorted(times, key=lambda pair: pair[0])[:3]:
                print(f"{name:18s} {time_us:9.1f} us  {tuple(choice)}", flush=True)

    def _time_us(self, run: Callable[[int], object]) -> float:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for layer in range(self.num_layers):
                run(layer)
        times_ms = sorted(timed_ms(graph.replay) for _ in range(6))
        return times_ms[2] * 1e3 / self.num_layers


def _tune_dense(tuner: _Tuner, num_rows: int) -> None:
    hidden_TD, heads_TQ = _random(num_rows, _HIDDEN), _random(num_rows, _HEADS)
    qkv, out = (
        _random(tuner.num_layers, _QKV, _HIDDEN),
        _random(tuner.num_layers, _HIDDEN, _HEADS),
    )
    for kind, tiles in (("narrow", _DENSE_NARROW if num_rows <= 256 else ()), ("wide", _DENSE_WIDE)):

        def choose(tile: Tile, limit: int = num_rows if kind == "narrow" else 0) -> None:
            dense._MAX_NARROW_ROWS = limit  # pyright: ignore[reportPrivateUsage]
            dense._narrow_tile = lambda num_rows: tile  # pyright: ignore[reportPrivateUsage]
            dense._wide_tile = partial(_always, tile)  # pyright: ignore[reportPrivateUsage]

        tuner.best(f"{kind} qkv  {num_rows}", tiles, choose, lambda i: dense.linear(hidden_TD, qkv[i]))
        tuner.best(
            f"{kind} out  {num_rows}", tiles, choose, lambda i: dense.linear_in_parts(heads_TQ, out[i])
        )


def _tune_experts(tuner: _Tuner, num_rows: int) -> None:
    hidden_TD = _random(num_rows, _HIDDEN)
    gate_up = _random(tuner.num_layers, _NUM_EXPERTS, 2 * _INNER, _HIDDEN)
    down = _random(tuner.num_layers, _NUM_EXPERTS, _HIDDEN, _INNER)
    ids_TK = torch.rand(num_rows, _NUM_EXPERTS, device="cuda").topk(_TOP_K).indices.int()
    lists = lists_of(ids_TK, _NUM_EXPERTS)
    inner_PI = _random(num_rows * _TOP_K, _INNER)
    tiles = _EXPERTS_FEW if num_rows <= 256 else _EXPERTS_MANY

    def choose_gate_up(tile: Tile) -> None:
        experts._gate_up_tile = lambda num_rows: tile  # pyright: ignore[reportPrivateUsage]

    def choose_down(tile: Tile) -> None:
        experts._down_tile = lambda num_rows: tile  # pyright: ignore[reportPrivateUsage]

    tuner.best(
        f"gate_up {num_rows}", tiles, choose_gate_up,
        lambda i: experts.gate_up(hidden_TD, gate_up[i], lists, _TOP_K),
    )  # fmt: skip
    tuner.best(
        f"down    {num_rows}", tiles, choose_down,
        lambda i: experts.down(inner_PI, down[i], lists, _TOP_K),
    )  # fmt: skip


def _tune_attention(tuner: _Tuner) -> None:
    num_tokens, num_sequences = 4_096, 2
    q_THC = _random(num_tokens * num_sequences, 32, 128)
    num_blocks = num_tokens * num_sequences // 16
    keys, values = _random(num_blocks, 16, 4, 128), _random(num_blocks, 16, 4, 128)
    tables_BM = torch.randperm(num_blocks, device="cuda").int().view(num_sequences, -1)
    bounds_B1 = torch.tensor([0, num_tokens, 2 * num_tokens], dtype=torch.int32, device="cuda")
    lens_B = torch.full((num_sequences,), num_tokens, dtype=torch.int32, device="cuda")
    choices = [
        attention_prefill._Tiles(*sizes)  # pyright: ignore[reportPrivateUsage]
        for sizes in ((128, 8, 3), (128, 8, 2), (128, 4, 2), (64, 4, 2), (64, 4, 3), (64, 8, 2))
    ]

    def choose(tiles: Any) -> None:
        attention_prefill._tiles = partial(_always, tiles)  # pyright: ignore[reportPrivateUsage]

    tuner.best(
        "attention 2 x 4096", choices, choose,
        lambda i: attention_prefill.prefill_attention(
            q_THC, keys, values, tables_BM, bounds_B1, lens_B, num_tokens
        ),
    )  # fmt: skip


def _always(choice: Any, *_: object, **__: object) -> Any:
    return choice


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16).mul_(shape[-1] ** -0.5)


if __name__ == "__main__":
    main()
