"""What the tests of delivery share: a namespace on a real server, jobs in it, results out of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from thinkstream_client.outcome import Finish
from thinkstream_client.protocol import functions
from thinkstream_client.protocol.connection import Connection
from thinkstream_client.protocol.functions import Claimed, JobInfo
from thinkstream_client.protocol.wire import Entry, RawEntry, Terminal
from thinkstream_client.records import JobRef, Request, SamplingParams, SessionId
from thinkstream_client.settings import RedisSettings
from thinkstream_workers.config import ReplicaConfig
from thinkstream_workers.replica import Replica

Start = Callable[..., Replica]

_LEASE_MS = 2_000
_SHAPE = {
    "vocab_size": 272,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Result:
    """A result stream, read whole."""

    ids: tuple[int, ...]
    text: str
    finish: Finish | None
    raw: tuple[RawEntry, ...]


class Service:
    """The client's and the scheduler's side of a queue with one partition."""

    def __init__(self, url: str) -> None:
        self.settings = RedisSettings(url)
        self.keys = self.settings.keys
        self.connection = Connection(self.settings)

    def config(self, name: str = "r", **settings: Any) -> ReplicaConfig:
        return ReplicaConfig(redis=self.settings, name=name, **settings)

    def submit(
        self, job_id: str, *, grain: int = 1, deadline_ms: int | None = None, **sampling: Any
    ) -> JobRef:
        params = SamplingParams(**sampling)
        return self.submit_request(
            job_id, Request(prompt="a prompt", grain=grain, sampling=params), deadline_ms=deadline_ms
        )

    def submit_request(self, job_id: str, request: Request, *, deadline_ms: int | None = None) -> JobRef:
        ref = JobRef("t", job_id)
        self.connection.run(functions.submit(self.keys, ref, request, deadline_ms=deadline_ms))
        return ref

    def claim(self, session: SessionId, k: int = 64) -> list[Claimed]:
        return self.connection.run(functions.claim(self.keys, 0, session, k))

    def info(self, ref: JobRef) -> JobInfo:
        return self.connection.run(functions.job_info(self.keys, ref))

    def result(self, ref: JobRef) -> Result:
        found = self.connection.run(functions.read_results(self.keys, {ref: 0}, block_ms=None, count=None))
        raw = tuple(found.get(ref, ()))
        entries = [entry for entry in raw if isinstance(entry, Entry)]
        finish = raw[-1].finish if raw and isinstance(raw[-1], Terminal) else None
        return Result(
            ids=tuple(token_id for entry in entries for token_id in entry.token_ids),
            text="".join(entry.text for entry in entries) + (finish.text if finish else ""),
            finish=finish,
            raw=raw,
        )

    def wait_finish(self, ref: JobRef, timeout_s: float = 20.0) -> Result:
        wait_until(lambda: self.result(ref).finish is not None, timeout_s)
        return self.result(ref)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited too long"
        threading.Event().wait(0.005)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    return wait_until


class Letters:
    """A tokenizer of letters: token 65 is A. Stop strings are looked for in all the text there is."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        if messages[0][1] == "broken":
            raise RuntimeError("the template is broken")
        return list("".join(f"{role}:{content}" for role, content in messages).encode())

    def detokenizer(self, stop: Sequence[str]) -> LettersText:
        return LettersText(stop)


class LettersText:
    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop, self._held, self.stopped = tuple(stop), "", False

    def push(self, token_id: int) -> str:
        self._held += chr(token_id)
        for stop in self._stop:
            if self._held.endswith(stop):
                self.stopped = True
                return self._release(len(self._held) - len(stop))
        sizes = [size for stop in self._stop for size in range(len(stop)) if self._held.endswith(stop[:size])]
        return self._release(len(self._held) - max(sizes, default=0))

    def finish(self) -> str:
        return self._release(len(self._held))

    def _release(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def service(redis_url: str) -> Iterator[Service]:
    service = Service(redis_url)
    yield service
    service.connection.close()


@pytest.fixture(scope="module")
def model_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Thinker."""
    file = tmp_path_factory.mktemp("tiny") / "config.json"
    file.write_text(json.dumps(_SHAPE))
    return f"random:{file}"


@pytest.fixture
def start(service: Service, model_name: str) -> Iterator[Start]:
    """Starts replicas of it."""
    replicas: list[Replica] = []

    def start(name: str = "r", **settings: int) -> Replica:
        config = service.config(name, model=model_name, lease_ms=_LEASE_MS, **settings)
        replica = Replica(config, on_death=lambda error: None)
        replica.start()
        replicas.append(replica)
        return replica

    yield start
    for replica in replicas:
        replica.stop()
