from __future__ import annotations

import threading
import time

from thinkstream_client.records import JobRef
from thinkstream_workers.mailboxes import IDLE_WAIT_S, Inbox, Outbox
from thinkstream_workers.orders import JobKey, StepOutput, Stop


def stop_of(number: int) -> Stop:
    return Stop(key=JobKey(JobRef("tenant", f"job-{number}"), 1))


def test_inbox_keeps_the_order_and_empties() -> None:
    inbox = Inbox()
    orders = [stop_of(number) for number in range(5)]
    for order in orders:
        inbox.put(order)
    assert inbox.drain(block=False) == orders
    assert inbox.drain(block=False) == []


def test_an_idle_engine_wakes_for_an_order_and_looks_up_in_any_case() -> None:
    inbox = Inbox()
    started = time.monotonic()
    assert inbox.drain(block=True) == []
    assert time.monotonic() - started < 5 * IDLE_WAIT_S
    threading.Timer(0.02, inbox.put, [stop_of(1)]).start()
    assert inbox.drain(block=True) == [stop_of(1)]


def test_orders_that_are_put_together_are_found_together() -> None:
    inbox = Inbox()
    orders = [stop_of(number) for number in range(100)]
    threading.Timer(0.02, inbox.put_all, [orders]).start()
    assert inbox.drain(block=True) == orders


def test_outbox_is_bounded_and_keeps_the_order() -> None:
    outbox = Outbox(max_outputs=2)
    first, second, third = StepOutput(), StepOutput(), StepOutput()
    assert outbox.put(first, 0.01)
    assert outbox.put(second, 0.01)
    assert not outbox.put(third, 0.01)
    taken: list[StepOutput | None] = []
    reader = threading.Timer(0.02, lambda: taken.append(outbox.get(0.01)))
    reader.start()
    assert outbox.put(third, 2.0)  # waits until there is room
    reader.join()
    assert taken[0] is first
    assert outbox.get(0.01) is second
    assert outbox.get(0.01) is third
    assert outbox.get(0.01) is None
