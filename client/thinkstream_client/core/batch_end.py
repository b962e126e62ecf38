"""The end of a batch, for whoever waits for it: one entry that Redis writes when its last job has ended."""

from __future__ import annotations

import time

from thinkstream_client.errors import BatchNotFound, ServiceUnavailable
from thinkstream_client.keys import Keys, check_name
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.call import Call
from thinkstream_client.protocol.functions import BatchEnd

from .effects import Backoff, Operation, Wait

CHECK_EVERY_S = 5.0
"""One command waits this long; between two of them it is asked whether Redis still knows the batch."""


def closing_calls(keys: Keys, tenant: str, batch_id: str) -> list[Call[None]]:
    """Returns the calls that say that all jobs of a batch were submitted."""
    return [functions.batch_close(keys, p, tenant, batch_id) for p in keys.partitions]


def wait_for_end(
    keys: Keys, tenant: str, batch_id: str, timeout_s: float | None, patience_s: float
) -> Operation[BatchEnd]:
    """Waits until the last job of a batch has ended.

    Args:
        keys: Names of the keys.
        tenant: Whose it is.
        batch_id: Its id.
        timeout_s: How long to wait.
        patience_s: How long a lost connection is tried again.

    Raises:
        BatchNotFound: There is no such batch.
        InvalidRequest: The tenant or the batch is no name.
        ServiceUnavailable: The connection has been lost for too long.
        TimeoutError: The end did not come in time.
    """
    check_name("tenant", tenant)
    check_name("batch", batch_id)
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    ended = BatchEnd()
    for p in keys.partitions:
        ended += yield from _wait_for_part(keys, p, tenant, batch_id, end_s, patience_s)
    return ended


def _wait_for_part(
    keys: Keys, p: int, tenant: str, batch_id: str, end_s: float | None, patience_s: float
) -> Operation[BatchEnd]:
    backoff = Backoff(patience_s)
    while True:
        left_s = CHECK_EVERY_S if end_s is None else end_s - time.monotonic()
        block_ms = max(1, round(min(left_s, CHECK_EVERY_S) * 1000))
        try:
            if not (yield functions.batch_exists(keys, p, tenant, batch_id)):
                raise BatchNotFound(batch_id)
            found: BatchEnd | None = yield Wait(
                functions.read_batch_end(keys, p, tenant, batch_id, block_ms=block_ms)
            )
        except ServiceUnavailable as error:
            yield backoff.lost(error)
            continue
        backoff.restored()
        if found is not None:
            return found
        if left_s <= 0:
            raise TimeoutError(f"batch {batch_id}: its end did not come in time")
