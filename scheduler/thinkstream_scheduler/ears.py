"""Hears of events in every partition: in a Cluster no command waits for more than one."""

from __future__ import annotations

import logging
import threading

from thinkstream_client.errors import ThinkstreamError
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.settings import RedisSettings

logger = logging.getLogger(__name__)

_BLOCK_MS = 500
_RETRY_S = 0.5


class Ears:
    """A thread per partition waits for its next event. They share what they hear, and say nothing else.

    A server that cannot be reached is not heard; who asks it for something learns why.

    Args:
        settings: The server and the namespace, with its partitions.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._keys = settings.keys
        self._connection = Connection(settings, blocking=True)
        self._heard = threading.Event()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._listen, args=(partition,), name=f"events-{partition}", daemon=True)
            for partition in self._keys.partitions
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float) -> None:
        """Returns at the first event since the last call, or after ``timeout_s`` without one."""
        self._heard.wait(timeout_s)
        self._heard.clear()

    def close(self) -> None:
        """Ends the threads, which takes as long as they wait for an event, and closes the connections."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _listen(self, partition: int) -> None:
        seen = "$"
        while not self._stopping.is_set():
            try:
                events = self._connection.run(
                    functions.read_events(self._keys, partition, seen, block_ms=_BLOCK_MS)
                )
            except ThinkstreamError as error:
                logger.debug("partition %d is not heard: %s", partition, error)
                self._stopping.wait(_RETRY_S)
                continue
            if events:
                seen = events[-1].entry_id
                self._heard.set()
