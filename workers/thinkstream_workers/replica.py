"""One replica, all wired: model, engine thread, intake thread, Publisher thread, session. Knows no Ray.

It takes jobs by ``assign`` and by what Redis says it owns, and answers in the jobs' result streams. What
ends one of its threads ends the replica: it goes silent, its lease runs out, and others take its jobs.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from thinkstream_client.errors import ConfigError, Fenced, ServiceError
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed
from thinkstream_client.records import SessionId

from .build import build_engine
from .config import ReplicaConfig
from .engine import Engine
from .intake import Intake
from .job_table import JobTable
from .loading import Digests, LoadedModel, load_model
from .mailboxes import Inbox, Outbox
from .orders import JobKey
from .publisher import Publisher
from .pulse import Pulse
from .resolve import Limits
from .session import Session
from .warm_up import WarmUp

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_RETRY_S = 0.2
_JOIN_S = 10.0


class Replica:
    """Serves one model to one namespace, from ``start`` to ``drain`` or ``stop``.

    Args:
        config: All settings.
        on_death: Called once, from the thread that failed, when the replica cannot go on.

    Raises:
        ConfigError: The model cannot be loaded, or the namespace serves another.
        ServiceUnavailable: Redis cannot be reached.
    """

    def __init__(
        self,
        config: ReplicaConfig,
        *,
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._on_death = on_death
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._table = JobTable()
        self._inbox, self._outbox, self._pulse = Inbox(), Outbox(), Pulse()
        model = load_model(config, partial(_claim_namespace, config))
        self._arithmetic = model.arithmetic
        self._connection = Connection(config.redis)
        self._session = Session(config, self._connection, _info(config), self._load)
        self._engine = self._build_engine(model)
        limits = Limits(max_context=self._engine.max_context, num_ids=model.num_ids)
        self._intake = Intake(
            self._session,
            text=model.text,
            defaults=model.defaults,
            limits=limits,
            table=self._table,
            inbox=self._inbox,
            outbox=self._outbox,
        )
        self._publisher = Publisher(
            self._session,
            config.lease_ms,
            table=self._table,
            inbox=self._inbox,
            outbox=self._outbox,
            pulse=self._pulse,
            adopt=self._intake.adopt,
        )

    @property
    def session(self) -> SessionId:
        """The present session."""
        return self._session.id

    def start(self) -> None:
        """Warms up, and makes the session known.

        Raises:
            ConfigError: The namespace's other replicas compute otherwise, or it was given a context meanwhile
                that is not for this replica.
            ServiceUnavailable: Redis cannot be reached, or the engine fails at its first step.
        """
        self._run_thread("engine", self._engine.run)
        self._warm_up()
        self._connection.run(functions.meta_claim(self._config.redis.keys, arithmetic=self._arithmetic))
        self._intake.limit_context(self._claimed_context(self._engine.max_context))
        self._session.open()
        self._run_thread("intake", self._intake.run)
        self._run_thread("publisher", self._publisher.run)

    def _warm_up(self) -> None:
        warm_up = WarmUp(self._engine, self._inbox, self._outbox, is_stopping=self._stopping.is_set)
        warm_up.run()
        if self._config.is_step_measured:
            limits = self._config.engine
            warm_up.size_step(
                self._config.lease_ms,
                num_seqs=limits.slots,
                usual_tokens=limits.step_tokens,
            )

    def assign(self, jobs: Sequence[Claimed]) -> None:
        """Takes up jobs that were claimed for this session; those it has already change nothing."""
        for claimed in jobs:
            self._intake.adopt(JobKey(claimed.ref, claimed.mk), claimed)

    def drain(self, timeout_s: float) -> None:
        """Takes no more jobs, waits for those in hand, gives the rest back and ends the session.

        Jobs that are given back go on elsewhere behind their last published token and count no attempt.

        Args:
            timeout_s: How long to wait for jobs in hand.
        """
        try:
            self._session.drain()
        except (Fenced, ServiceError) as error:  # the Publisher will meet the same and deal with it
            logger.info("draining could not be announced: %s", error)
        give_up_at = time.monotonic() + timeout_s
        while len(self._table) and time.monotonic() < give_up_at and not self._stopping.is_set():
            time.sleep(_POLL_S)
        self._stop_threads()
        try:
            self._session.close(key.ref for key in self._table.clear())
        except (Fenced, ServiceError) as error:
            # Then the lease gives back what this call could not.
            logger.warning("the session ends by its lease: %s", error)
        self._connection.close()

    def stop(self) -> None:
        """Ends now and says nothing, as if the process had died: the lease gives back its jobs."""
        self._stop_threads()
        self._connection.close()

    def _build_engine(self, model: LoadedModel) -> Engine:
        return build_engine(
            model.thinker,
            self._config.engine,
            num_valid_ids=model.num_ids,
            inbox=self._inbox,
            outbox=self._outbox,
            announce=self._announce,
            on_turn=self._pulse.stamp,
            agree_context=self._agreed_context,
        )

    def _agreed_context(self, room: int) -> int:
        """The namespace's context; all that there is room for where it has none yet.

        Raises:
            ConfigError: There is less room here, or more was asked for.
        """
        agreed = self._connection.run(functions.context_get(self._config.redis.keys))
        return room if agreed is None else self._checked_context(agreed, room)

    def _claimed_context(self, room: int) -> int:
        """The namespace's context, set by its first replica that works: a job must end alike on all of them.

        Another replica, started at the same time, may have set it since ours was looked up.

        Raises:
            ConfigError: There is less room here, or more was asked for.
        """
        agreed = self._connection.run(functions.context_claim(self._config.redis.keys, room))
        return self._checked_context(agreed, room)

    def _checked_context(self, agreed: int, room: int) -> int:
        asked = self._config.max_context
        if room < agreed or (asked is not None and asked != agreed):
            raise ConfigError(
                f"namespace {self._config.namespace} serves a context of {agreed} tokens, "
                f"this replica one of {room}: start it with --max-context {agreed} and the memory for it, "
                "or in a namespace of its own with --namespace NAME"
            )
        return agreed

    def _load(self) -> dict[str, str]:
        """What a status page shows of the work in hand."""
        load = self._engine.load
        return {
            "waiting": str(load.waiting),
            "free_blocks": str(load.free_blocks),
            "num_blocks": str(load.num_blocks),
            "tokens": str(load.tokens),
        }

    def _announce(self, key: JobKey | None) -> None:
        """Names the suspect that is about to be stepped; the engine waits until Redis knows."""
        while not self._stopping.is_set():
            try:
                self._session.announce(key.ref if key else None)
            except ServiceError:
                self._pulse.stamp()
                self._stopping.wait(_RETRY_S)
                continue
            except Fenced:  # the Publisher will hear it too, and drop all jobs
                pass
            return

    def _run_thread(self, name: str, target: Callable[[], None]) -> None:
        def run() -> None:
            try:
                target()
            except BaseException as error:
                self._die(name, error)

        thread = threading.Thread(target=run, name=f"{self._config.name}-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _die(self, name: str, error: BaseException) -> None:
        if self._stopping.is_set():
            return
        logger.critical("the %s thread has failed", name, exc_info=error)
        self._signal_stop()
        self._on_death(error)

    def _signal_stop(self) -> None:
        self._stopping.set()
        for part in (self._engine, self._intake, self._publisher):
            part.stop()

    def _stop_threads(self) -> None:
        self._signal_stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)


def _claim_namespace(config: ReplicaConfig, digests: Digests) -> None:
    """Sees to it that the namespace serves this model and no other; over a connection for that alone."""
    connection = Connection(config.redis)
    try:
        connection.run(
            functions.meta_claim(
                config.redis.keys,
                model_digest=digests.model,
                tokenizer_digest=digests.tokenizer,
                model=config.model,
            )
        )
    finally:
        connection.close()


def _info(config: ReplicaConfig) -> dict[str, str]:
    """What a status page shows of a session."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "model": config.model,
        "device": config.device,
    }
