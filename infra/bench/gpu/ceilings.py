"""What the card itself can do."""

from __future__ import annotations

import statistics

import torch

_NUM_BYTES = 4 << 30
_NUM_RUNS = 15


def timed_events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """A pair of events, to be recorded before and behind what is timed."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return began, ended


def read_bandwidth() -> float:
    """Bytes per second at which the card reads memory that no cache holds, the median of several runs.

    A sum of 4 GiB reads every byte once and writes next to nothing.
    """
    numbers = torch.ones(_NUM_BYTES // 4, dtype=torch.float32, device="cuda").view(1 << 15, -1)
    seconds: list[float] = []
    for _ in range(_NUM_RUNS):
        began, ended = timed_events()
        began.record()
        numbers.sum(dim=1)
        ended.record()
        ended.synchronize()
        seconds.append(began.elapsed_time(ended) / 1e3)
    del numbers
    torch.cuda.empty_cache()
    return _NUM_BYTES / statistics.median(seconds)
