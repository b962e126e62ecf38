"""The Ray shell round a replica, and the only file here that knows Ray.

Jobs come in by ``assign``, many in one call; tokens never leave this way. The actor is not restarted by
Ray: it dies with its replica, and whoever holds it starts another.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import SessionId

from .config import ReplicaConfig
from .log_format import LOG_FORMAT

logger = logging.getLogger(__name__)

EXIT_CODE = 1
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """Who a replica is, once it can take jobs.

    Attributes:
        session: Its present session.
        pid: Its process.
    """

    session: SessionId
    pid: int


@ray.remote(max_restarts=0)
class ReplicaActor:
    """Loads the model and serves until it is drained or dies.

    The methods are coroutines so that any number of them may wait at once, those of schedulers that have
    died since included.

    Args:
        config: The replica's settings.

    Raises:
        ConfigError: The model or the namespace is wrong; the actor does not start.
    """

    def __init__(self, config: ReplicaConfig) -> None:
        # Here, because whoever starts replicas imports this module too, and has no use for torch.
        import torch

        from .replica import Replica

        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self._replica = Replica(config, on_death=_exit)
        self._replica.start()

    @ray.method
    async def ready(self) -> ReplicaInfo:
        """Answers once the session is open: the constructor comes first."""
        return ReplicaInfo(session=self._replica.session, pid=os.getpid())

    @ray.method
    async def assign(self, jobs: Sequence[Claimed]) -> None:
        """Takes up claimed jobs."""
        self._replica.assign(jobs)

    @ray.method
    async def drain(self, timeout_s: float) -> None:
        """Takes no more jobs, waits for those in hand, gives the rest back and ends the session."""
        await asyncio.to_thread(self._replica.drain, timeout_s)

    @ray.method
    async def next_session(self, known: SessionId | None) -> SessionId:
        """Returns the session as soon as it is another than ``known``.

        The call fails when the actor dies, which is how a holder hears of that too, and at once.
        """
        while (session := self._replica.session) == known:
            await asyncio.sleep(_POLL_S)
        return session


def _exit(error: BaseException) -> None:
    # Not through the interpreter: threads of a failed device may never let it end.
    logger.critical("the replica ends: %s", error)
    logging.shutdown()
    os._exit(EXIT_CODE)
