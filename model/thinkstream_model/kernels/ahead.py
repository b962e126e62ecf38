"""Compiles kernels before they are launched, side by side.

Triton compiles a kernel at its first launch, for each kind of arguments anew, while everything waits. Most
of that is the work of compilers that need no Python, so that every core can have its kernel.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from triton import AsyncCompileMode, JITFunction

logger = logging.getLogger(__name__)

_MAX_COMPILERS = 16


def compile_ahead(run: Callable[[], object]) -> int:
    """Compile whatever a run would launch, and launch nothing; what is in Triton's cache is only read.

    A kernel that cannot be compiled says so when it is launched in earnest.

    Args:
        run: Launches kernels from the thread that calls it, whatever it finds in their results: they have
            none. Launches of other threads are as ever.

    Returns:
        How many kernels were not ready.
    """
    began_s = time.perf_counter()
    with ThreadPoolExecutor(min(_MAX_COMPILERS, os.cpu_count() or 1), "compilers") as compilers:
        with AsyncCompileMode(compilers, ignore_errors=True) as mode, _launches_left_out():
            run()
        num_kernels = len(mode.future_kernels)
    logger.info("%d kernels made ready in %.1f s", num_kernels, time.perf_counter() - began_s)
    return num_kernels


@contextmanager
def _launches_left_out() -> Generator[None]:
    """Takes every launch of this thread for Triton's ``warmup``, which compiles and does no more.

    Triton has no switch for that, and the launches are in the midst of the kernels' own functions.
    """
    launch, thread = JITFunction.run, threading.get_ident()

    def launch_elsewhere(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        is_left_out = warmup or threading.get_ident() == thread
        return launch(kernel, *args, grid=grid, warmup=is_left_out, **options)

    JITFunction.run = launch_elsewhere
    try:
        yield
    finally:
        JITFunction.run = launch
