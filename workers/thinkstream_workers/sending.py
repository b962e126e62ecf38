"""Rows of many jobs in one call, or each by itself where Redis refuses the call.

Knows neither what the rows are nor what becomes of the jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from thinkstream_client.errors import CommandRefused
from thinkstream_client.protocol.functions import StepReply

T = TypeVar("T")


def send_rows(
    batch: Sequence[T], send: Callable[[Sequence[T]], list[StepReply]]
) -> tuple[list[tuple[T, StepReply]], list[tuple[T, CommandRefused]]]:
    """Sends rows together or, where Redis refuses that, each by itself.

    Rows that were taken the first time are then refused as sent already, which their replies tell.

    Args:
        batch: Whose rows they are, at least one.
        send: Makes the call.

    Returns:
        The replies, and whose rows were refused while others were taken.

    Raises:
        CommandRefused: All are refused: it is the call that Redis does not do.
    """
    try:
        return list(zip(batch, send(batch), strict=True)), []
    except CommandRefused:
        if len(batch) == 1:
            raise
    taken: list[tuple[T, StepReply]] = []
    refused: list[tuple[T, CommandRefused]] = []
    for one in batch:
        try:
            taken.append((one, send([one])[0]))
        except CommandRefused as error:
            refused.append((one, error))
    if not taken:
        raise refused[0][1]
    return taken, refused
