"""The actor's own engine with random weights, its orders given by hand and its tokens timed as they leave."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

import torch

from thinkstream_client.records import JobRef
from thinkstream_model.thinker import Thinker
from thinkstream_workers.build import build_engine
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, StepOutput, Submit
from thinkstream_workers.sampling import ResolvedSampling

_POLL_S = 0.05
_PLAIN = ResolvedSampling()


class Ask(NamedTuple):
    """One job's: its prompt, the tokens of its result that are there already, its sampling."""

    prompt_ids: tuple[int, ...]
    published_ids: tuple[int, ...]
    sampling: ResolvedSampling


class Decoded(NamedTuple):
    """What some jobs brought, in seconds from their submission.

    Attributes:
        first_s: Until every job had its first token.
        all_s: Until every job had its last.
        texts: The tokens of each job.
    """

    first_s: float
    all_s: float
    texts: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens of all jobs together."""
        return sum(map(len, self.texts))


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
        while not self.engine.is_rehearsed and self._thread.is_alive():
            time.sleep(_POLL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()
        self._thread.join()
        torch.cuda.empty_cache()

    def run(
        self, num_jobs: int, num_prompt: int, num_tokens: int, sampling: ResolvedSampling = _PLAIN
    ) -> Decoded:
        """Have random prompts answered.

        Args:
            num_jobs: Jobs.
            num_prompt: Tokens in of each.
            num_tokens: Tokens out of each.
            sampling: How they are chosen; its own ``max_tokens`` does not count.
        """
        sampling = replace(sampling, max_tokens=num_tokens)
        prompts = [self.random_prompt(num_prompt) for _ in range(num_jobs)]
        decoded = self.decode([Ask(prompt_ids, (), sampling) for prompt_ids in prompts])
        if decoded.num_tokens != num_jobs * num_tokens:
            raise RuntimeError(f"{decoded.num_tokens} tokens instead of {num_jobs * num_tokens}")
        return decoded

    def random_prompt(self, num_tokens: int) -> tuple[int, ...]:
        """Tokens of the whole vocabulary."""
        return tuple(secrets.randbelow(self._num_ids) for _ in range(num_tokens))

    def decode(self, jobs: Sequence[Ask]) -> Decoded:
        """Have jobs answered, which the engine finds all at once.

        Args:
            jobs: What is asked.

        Raises:
            RuntimeError: The engine or one of the jobs failed.
        """
        began_s = time.perf_counter()
        texts: dict[JobKey, list[int]] = {key: [] for key in self.submit(jobs)}
        num_ended = 0
        first_s = 0.0
        while num_ended < len(jobs):
            output = self.next_output()
            for token in output.tokens:
                texts[token.key].append(token.token_id)
            if not first_s and all(texts.values()):
                first_s = time.perf_counter() - began_s
            num_ended += len(output.ends)
        return Decoded(first_s, time.perf_counter() - began_s, list(texts.values()))

    def submit(self, jobs: Sequence[Ask]) -> list[JobKey]:
        """Hand jobs to the engine, all at once, and do not wait."""
        keys = [JobKey(JobRef("-", str(next(self._numbers))), 0) for _ in jobs]
        self._inbox.put_all(
            Submit(key=key, prompt_ids=prompt_ids, published_ids=published_ids, sampling=sampling)
            for key, (prompt_ids, published_ids, sampling) in zip(keys, jobs, strict=True)
        )
        return keys

    def next_output(self) -> StepOutput:
        """Wait for what the next step brings.

        Raises:
            RuntimeError: The engine or one of the jobs failed.
        """
        while True:
            output = self._outbox.get(_POLL_S)
            if output is not None:
                break
            if not self._thread.is_alive():
                raise RuntimeError("the engine has failed")
        failed = [end.error.message for end in output.ends if end.error is not None]
        if failed:
            raise RuntimeError(failed[0])
        return output
