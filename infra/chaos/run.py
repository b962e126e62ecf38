"""One run from start to report."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thinkstream_client.protocol import functions
from thinkstream_client.records import JobRef

from .audit import Kept, Received, judge, read_kept, received_by_job, total
from .faults import Faults
from .journal import read_journal
from .options import ChaosOptions
from .plan import JobPlan, make_job
from .reader import journal_path
from .report import Report
from .stage import Stage
from .takeover import Takeover, find_takeovers
from .undisturbed import Undisturbed, compute_undisturbed

logger = logging.getLogger(__name__)

_TURN_S = 0.1
_LOOK_EVERY_S = 0.5
_NUM_EXAMPLES = 10


def run_chaos(options: ChaosOptions, checkpoint: Callable[[], None] = lambda: None) -> Report:
    """Starts the service, breaks it as told, waits for the last job, and counts.

    The files of a run with which something is wrong stay where the log says.

    Args:
        options: The run.
        checkpoint: Called all the while; what it raises ends the run, and everything that runs.

    Raises:
        ConfigError, ServiceUnavailable: The service does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="thinkstream-chaos-"))
    undisturbed = compute_undisturbed(options.seed, options.num_specs, folder / "undisturbed.json")
    stage = Stage(options, folder)
    try:
        stage.start(checkpoint)
        run = _Run(options, stage, checkpoint)
        run.break_things()
        run.wait_for_the_rest()
        report = run.audit(undisturbed)
    finally:
        stage.stop()
    if report.is_clean:
        shutil.rmtree(folder)
    else:
        logger.error("the files of this run are in %s", folder)
    return report


class _Run:
    """The course of one run on a stage that stands."""

    def __init__(self, options: ChaosOptions, stage: Stage, checkpoint: Callable[[], None]) -> None:
        self._options, self._stage, self._checkpoint = options, stage, checkpoint
        self._faults = Faults(options, stage)
        self._pids: dict[str, int] = {}
        self._began_s = time.monotonic()
        self._next_look_s = 0.0

    def break_things(self) -> None:
        """Injects faults for the given time, and until the readers have begun the given jobs."""
        self._stage.start_readers()
        end_s = self._began_s + self._options.seconds
        self._turn_until(end_s)
        self._stage.tell_readers_to_end()
        while self._num_begun() < self._options.min_jobs:
            self._turn_until(time.monotonic() + 1.0)
        self._faults.end()

    def wait_for_the_rest(self) -> None:
        """Returns when all readers have ended, or none has received anything for the given patience."""
        size, since_s = -1, time.monotonic()
        while any(code is None for code in self._stage.reader_codes()):
            if self._size() != size:
                size, since_s = self._size(), time.monotonic()
            elif time.monotonic() - since_s > self._options.patience_s:
                logger.error("nothing comes any more")
                return
            self._look()
            time.sleep(_TURN_S)
        # Where Redis has lost the end of a job whose reader has seen it, the job runs once more.
        until_s = time.monotonic() + self._options.patience_s
        while any(self._left().values()) and time.monotonic() < until_s:
            time.sleep(_LOOK_EVERY_S)

    def audit(self, undisturbed: list[Undisturbed]) -> Report:
        """Compares everything."""
        takeovers: list[Takeover] = []
        wrongs: dict[int, Counter[str]] = {}
        examples: list[dict[str, Any]] = []
        ends: Counter[str] = Counter()
        num_tokens = num_claims = num_forks = 0
        for number in range(self._options.num_readers):
            records = list(read_journal(journal_path(self._stage.folder, number)))
            restarts_s = [record.at_s for record in records if record.kind == "up"]
            for job, got in received_by_job(records).items():
                plan = make_job(self._options.seed, job, self._options.num_specs)
                kept = self._kept(plan)
                wrong = judge(plan, got, kept, undisturbed[plan.spec])
                if wrong:
                    wrongs[job] = wrong
                    if len(examples) < _NUM_EXAMPLES:
                        examples.append(_example(plan, got, kept, wrong))
                ends[got.reason or "none"] += 1
                num_tokens += len(got.ids)
                num_claims += max(0, len(kept.markers) - 1)
                num_forks += got.num_forks
                if plan.stream:
                    takeovers += find_takeovers(
                        got.arrivals, kept.markers, self._pids, self._faults.done, restarts_s
                    )
        return Report(
            options=self._options,
            seconds=time.monotonic() - self._began_s,
            jobs=ends,
            num_tokens=num_tokens,
            num_claims=num_claims,
            num_forks=num_forks,
            wrong=total(wrongs),
            left=self._left(),
            examples=examples,
            faults=self._faults.done,
            takeovers=takeovers,
        )

    def _turn_until(self, end_s: float) -> None:
        while time.monotonic() < end_s:
            self._faults.step()
            self._look()
            for number, code in enumerate(self._stage.reader_codes()):
                if code:
                    raise RuntimeError(f"reader {number} has ended with code {code}; see its log")
            time.sleep(_TURN_S)

    def _look(self) -> None:
        """Notes which process each session is, and whether the run is to end."""
        self._checkpoint()
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_EVERY_S
            self._pids.update((live.session, int(live.info["pid"])) for live in self._stage.sessions())

    def _paths(self) -> list[Path]:
        return [journal_path(self._stage.folder, i) for i in range(self._options.num_readers)]

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self._paths() if path.exists())

    def _num_begun(self) -> int:
        return sum(record.kind == "begin" for path in self._paths() for record in read_journal(path))

    def _kept(self, plan: JobPlan) -> Kept:
        ref = JobRef(plan.tenant, plan.job_id)
        call = functions.read_results(self._stage.keys, {ref: 0}, block_ms=None, count=None)
        return read_kept(plan.job_id, self._stage.run(call).get(ref, []))

    def _left(self) -> dict[str, int]:
        """Jobs that Redis holds as running or waiting; none when all have ended."""
        keys = self._stage.keys
        backlogs = [self._stage.run(functions.backlog(keys, p)) for p in keys.partitions]
        return {
            "waiting": sum(one.num_jobs for one in backlogs),
            "running": sum(one.running for one in backlogs),
            "retrying": sum(one.retrying for one in backlogs),
            "dead": sum(one.dead for one in backlogs),
        }


def _example(plan: JobPlan, got: Received, kept: Kept, wrong: Counter[str]) -> dict[str, Any]:
    return {
        "job": plan.job_id,
        "wrong": dict(wrong),
        "received": {"tokens": len(got.ids), "reason": got.reason, "forks": got.num_forks},
        "kept": {"tokens": len(kept.ids), "reason": kept.reason, "claims": len(kept.markers)},
    }
