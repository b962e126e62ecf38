"""Compiles kernels before they are launched, side by side.

Triton compiles a kernel at its first launch, for each kind of arguments anew, while everything waits. Most
of that is the work of compilers that need no Python, so that every core can have its kernel. Others do what
is left then: the kernel's launcher, which Triton writes in C, and loading the kernel to the device.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from triton import AsyncCompileMode, JITFunction
from triton.runtime import driver

logger = logging.getLogger(__name__)

_MAX_COMPILERS = 16


def compile_ahead(run: Callable[[], object]) -> int:
    """Compile and load whatever a run would launch, and launch nothing; what Triton's cache has is only read.

    A kernel that cannot be compiled or loaded says so when it is launched in earnest.

    Args:
        run: Launches kernels from the thread that calls it, whatever it finds in their results: they have
            none. Launches of other threads are as ever.

    Returns:
        How many kernels were not ready.
    """
    began_s = time.perf_counter()
    with _Compilers(driver.active.get_current_device()) as compilers:
        with AsyncCompileMode(compilers, ignore_errors=True) as mode, _launches_left_out():
            run()
        num_kernels = len(mode.future_kernels)
    logger.info("%d kernels made ready in %.1f s", num_kernels, time.perf_counter() - began_s)
    return num_kernels


class _Compilers(ThreadPoolExecutor):
    """Threads for a device that do with a kernel all that can be done before it is launched.

    Triton's mode has them compile alone.
    """

    def __init__(self, device: int) -> None:
        num_threads = min(_MAX_COMPILERS, os.cpu_count() or 1)
        super().__init__(num_threads, "compilers", driver.active.set_current_device, (device,))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a thread compile a kernel, make its launcher and load it."""

        def make_ready() -> Any:
            kernel = fn(*args, **kwargs)
            _ = kernel.run  # made when it is first asked for
            return kernel

        return super().submit(make_ready)


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
