"""The actor's own engine with random weights, its orders given by hand and its tokens timed as they leave."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from types import TracebackType
from typing import NamedTuple

import torch

from thinkstream_client.records import JobRef
from thinkstream_model.thinker import Thinker
from thinkstream_workers.build import build_engine
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, Submit
from thinkstream_workers.sampling import ResolvedSampling

_POLL_S = 0.05


class RunTimes(NamedTuple):
    """How long one batch of jobs took, in seconds from its submission.

    Attributes:
        first_s: Until every job had its first token.
        all_s: Until every job had its last.
        num_tokens: Tokens of all jobs together.
    """

    first_s: float
    all_s: float
    num_tokens: int


class EngineBench:
    """An engine in a thread of its own, to be used as a context.

    Args:
        thinker: The model.
        config: The engine's limits.
    """

    def __init__(self, thinker: Thinker, config: EngineConfig) -> None:
        self._num_ids = thinker.config.vocab_size
        self._numbers = itertools.count()
        self._inbox, self._outbox = Inbox(), Outbox(max_outputs=1_024)
        self.engine = build_engine(
            thinker,
            config,
            num_valid_ids=self._num_ids,
            inbox=self._inbox,
            outbox=self._outbox,
            announce=lambda suspect: None,
            on_turn=lambda: None,
        )
        self._thread = threading.Thread(target=self.engine.run, daemon=True)

    def __enter__(self) -> EngineBench:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()
        self._thread.join()
        torch.cuda.empty_cache()

    def run(self, num_jobs: int, num_prompt: int, num_tokens: int, *, temperature: float = 1.0) -> RunTimes:
        """Have jobs of random prompts answered, all submitted at once.

        Args:
            num_jobs: Jobs.
            num_prompt: Tokens in of each.
            num_tokens: Tokens out of each.
            temperature: Of the sampling; 1 keeps the choice of experts spread.
        """
        sampling = ResolvedSampling(max_tokens=num_tokens, temperature=temperature)
        prompts = [
            tuple(secrets.randbelow(self._num_ids) for _ in range(num_prompt)) for _ in range(num_jobs)
        ]
        began_s = time.perf_counter()
        for prompt_ids in prompts:
            key = JobKey(JobRef("-", str(next(self._numbers))), 0)
            self._inbox.put(Submit(key=key, prompt_ids=prompt_ids, sampling=sampling))
        num_begun = num_ended = num_seen = 0
        first_s = 0.0
        while num_ended < num_jobs:
            output = self._outbox.get(_POLL_S)
            if output is None:
                if not self._thread.is_alive():
                    raise RuntimeError("the engine has failed")
                continue
            now_s = time.perf_counter() - began_s
            num_seen += len(output.tokens)
            num_begun += sum(token.index == 1 for token in output.tokens)
            if num_begun == num_jobs and not first_s:
                first_s = now_s
            for end in output.ends:
                if end.error is not None:
                    raise RuntimeError(end.error.message)
            num_ended += len(output.ends)
        if num_seen != num_jobs * num_tokens:
            raise RuntimeError(f"{num_seen} tokens instead of {num_jobs * num_tokens}")
        return RunTimes(first_s, time.perf_counter() - began_s, num_seen)
