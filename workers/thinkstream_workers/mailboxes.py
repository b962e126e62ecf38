"""The Engine's two doors: orders come in through one, step outputs leave by the other.

Queues between threads of one process. They know nothing of what passes through them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from .orders import Order, StepOutput

IDLE_WAIT_S = 0.05
"""Longest wait at a door, for work or for room: who waits must show that it is alive, and hear of an end."""


class Inbox:
    """Orders for the Engine, in the order given. Any thread puts, the engine's thread drains."""

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()
        self._arrived = threading.Condition()

    def put(self, order: Order) -> None:
        """Adds an order and wakes an idle engine."""
        self.put_all((order,))

    def put_all(self, orders: Iterable[Order]) -> None:
        """Adds orders that the engine is to find together, and wakes it if it is idle."""
        with self._arrived:
            self._orders.extend(orders)
            self._arrived.notify()

    def drain(self, block: bool) -> list[Order]:
        """Takes all orders that are there.

        Args:
            block: Wait up to ``IDLE_WAIT_S`` for the first one.
        """
        with self._arrived:
            if block and not self._orders:
                self._arrived.wait(IDLE_WAIT_S)
            orders = list(self._orders)
            self._orders.clear()
            return orders


class Outbox:
    """Step outputs for the Publisher. Bounded, so that a Redis that stands still stops the engine too.

    Args:
        max_outputs: Outputs that may wait in it.
    """

    def __init__(self, max_outputs: int = 64) -> None:
        self._outputs: deque[StepOutput] = deque()
        self._max_outputs = max_outputs
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)

    def put(self, output: StepOutput, timeout_s: float) -> bool:
        """Adds an output, waiting up to ``timeout_s`` for room; tells whether there was any."""
        with self._lock:
            if not self._emptied.wait_for(lambda: len(self._outputs) < self._max_outputs, timeout_s):
                return False
            self._outputs.append(output)
            self._filled.notify()
            return True

    def get(self, timeout_s: float) -> StepOutput | None:
        """Takes the oldest output, waiting up to ``timeout_s`` for one; None when there was none."""
        with self._lock:
            if not self._filled.wait_for(lambda: len(self._outputs) > 0, timeout_s):
                return None
            output = self._outputs.popleft()
            self._emptied.notify()
            return output
