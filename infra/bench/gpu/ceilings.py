"""What the card itself can do, and how long it takes for what it is given."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch

_NUM_BYTES = 4 << 30
_NUM_RUNS = 15


def timed_ms(run: Callable[[], object]) -> float:
    """Milliseconds that the card takes for what a function launches."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    run()
    ended.record()
    ended.synchronize()
    elapsed_ms: float = began.elapsed_time(ended)
    return elapsed_ms


def read_bandwidth() -> float:
    """Bytes per second at which the card reads memory that no cache holds, the median of several runs.

    A sum of 4 GiB reads every byte once and writes next to nothing.
    """
    numbers = torch.ones(_NUM_BYTES // 4, dtype=torch.float32, device="cuda").view(1 << 15, -1)
    add_up = partial(torch.sum, numbers, dim=1)
    median_ms = statistics.median(timed_ms(add_up) for _ in range(_NUM_RUNS))
    del numbers, add_up
    torch.cuda.empty_cache()
    return _NUM_BYTES / median_ms * 1e3
