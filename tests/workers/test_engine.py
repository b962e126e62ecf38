from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from thinkstream_client.outcome import FinishReason
from thinkstream_client.records import JobRef
from thinkstream_model.config import ThinkerConfig
from thinkstream_model.inputs import StepInputs
from thinkstream_model.kv_cache import KVCache
from thinkstream_model.thinker import Thinker, random_thinker
from thinkstream_workers import batcher as batcher_module
from thinkstream_workers.batch import Batch
from thinkstream_workers.build import build_engine
from thinkstream_workers.engine import Engine
from thinkstream_workers.engine_config import EngineConfig
from thinkstream_workers.mailboxes import Inbox, Outbox
from thinkstream_workers.orders import JobKey, SequenceEnd, Started, Stop, Submit, TokenOut
from thinkstream_workers.runner import InFlight, ModelRunner
from thinkstream_workers.sampling import ResolvedSampling

NUM_IDS = 90
POISON = 92
"""An id on which ``FailingThinker`` stumbles: in the vocabulary, but never sampled."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    config = ThinkerConfig(
        vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        decoder_sparse_step=1, norm_topk_prob=True, rope_theta=10_000.0, rms_norm_eps=1e-6,
        max_position_embeddings=512,
    )  # fmt: skip
    return random_thinker(config, seed=3)


class FailingThinker(Thinker):
    """Fails any step that has ``POISON`` among its tokens, and counts its steps."""

    def __init__(self, thinker: Thinker, error: Exception) -> None:
        super().__init__(thinker.weights)
        self.error = error
        self.num_steps = 0

    def forward(self, inputs: StepInputs, kv: KVCache) -> Tensor:
        self.num_steps += 1
        if bool((inputs.input_ids_T == POISON).any()):
            raise self.error
        return super().forward(inputs, kv)


@dataclass
class Heard:
    """What came out of an engine, by job."""

    tokens: dict[JobKey, list[TokenOut]] = field(default_factory=dict[JobKey, list[TokenOut]])
    ends: dict[JobKey, SequenceEnd] = field(default_factory=dict[JobKey, SequenceEnd])
    announced: list[JobKey | None] = field(default_factory=list[JobKey | None])
    started: list[Started] = field(default_factory=list[Started])
    preemptions: int = 0

    def ids(self, number: int) -> list[int]:
        return [token.token_id for token in self.tokens.get(key_of(number), [])]


def key_of(number: int) -> JobKey:
    return JobKey(JobRef("tenant", f"job-{number}"), 1)


def prompt_of(number: int, length: int | None = None) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    size = 3 + 7 * (number % 6) if length is None else length
    return tuple(int(n) for n in torch.randint(0, 70, (size,), generator=generator))


def submit_of(number: int, *, max_tokens: int = 24, alone: bool = False) -> Submit:
    """A job whose sampling depends on its number: greedy, plain, filtered with bias, with penalties too."""
    kinds = [
        ResolvedSampling(temperature=0.0),
        ResolvedSampling(temperature=1.0),
        ResolvedSampling(
            temperature=0.9, top_p=0.9, top_k=20, min_p=0.01, logit_bias={5: 2.0, 6: -3.0}, logprobs=0
        ),
        ResolvedSampling(
            temperature=1.0, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3,
            logit_bias={5: 2.0, 6: -3.0}, logprobs=2,
        ),
    ]  # fmt: skip
    sampling = replace(kinds[number % 4], max_tokens=max_tokens, seed=(1 << 64) - 1 - number)
    return Submit(key=key_of(number), prompt_ids=prompt_of(number), sampling=sampling, alone=alone)


CONFIG = EngineConfig(slots=32, step_tokens=512, num_blocks=512)


@pytest.fixture(params=[False, True], ids=["in step", "ahead"])
def config(request: pytest.FixtureRequest) -> EngineConfig:
    return replace(CONFIG, run_ahead=request.param)


@contextmanager
def running(
    thinker: Thinker, config: EngineConfig, heard: Heard, *, max_outputs: int = 64
) -> Generator[tuple[Engine, Inbox, Outbox]]:
    inbox, outbox = Inbox(), Outbox(max_outputs)
    engine = build_engine(
        thinker, config, num_valid_ids=NUM_IDS, inbox=inbox, outbox=outbox,
        announce=heard.announced.append, on_turn=lambda: None,
    )  # fmt: skip
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    try:
        yield engine, inbox, outbox
    finally:
        engine.stop()
        thread.join(5)
        assert not thread.is_alive()


def listen(outbox: Outbox, heard: Heard, until: Callable[[], bool]) -> None:
    while not until():
        output = outbox.get(10.0)
        assert output is not None, "the engine says nothing"
        heard.started += output.started
        for token in output.tokens:
            heard.tokens.setdefault(token.key, []).append(token)
        for end in output.ends:
            assert end.key not in heard.ends
            heard.ends[end.key] = end


def run(thinker: Thinker, orders: Sequence[Submit], config: EngineConfig) -> Heard:
    heard = Heard()
    with running(thinker, config, heard) as (engine, inbox, outbox):
        for order in orders:
            inbox.put(order)
        listen(outbox, heard, lambda: len(heard.ends) == len(orders))
        assert engine.load.free_blocks == engine.load.num_blocks
        heard.preemptions = engine.load.preemptions
    return heard


@pytest.fixture(scope="module")
def alone(thinker: Thinker) -> dict[int, list[TokenOut]]:
    """The tokens of each job when it has the engine to itself."""
    return {n: run(thinker, [submit_of(n)], CONFIG).tokens[key_of(n)] for n in range(8)}


def assert_same(heard: Heard, alone: dict[int, list[TokenOut]]) -> None:
    for number, tokens in alone.items():
        assert heard.tokens[key_of(number)] == tokens  # ids, places and log-probabilities, bit for bit


def test_tokens_are_varied_and_valid(alone: dict[int, list[TokenOut]]) -> None:
    for number, tokens in alone.items():
        assert [token.index for token in tokens] == list(range(1, 25))
        assert all(0 <= token.token_id < NUM_IDS for token in tokens)
        assert all((token.logprobs is not None) == (number % 4 >= 2) for token in tokens)
    assert len({tuple(token.token_id for token in tokens) for tokens in alone.values()}) == 8
    logprobs = alone[3][0].logprobs
    assert logprobs is not None
    assert len(logprobs.top) == 2


def test_the_same_in_a_batch_of_32(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    assert_same(run(thinker, [submit_of(n) for n in reversed(range(32))], config), alone)


def test_the_same_in_a_batch_without_penalties(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    numbers = [n for n in range(32) if n % 4 != 3]
    heard = run(thinker, [submit_of(n) for n in numbers], config)
    assert_same(heard, {n: tokens for n, tokens in alone.items() if n in numbers})


@pytest.mark.parametrize("run_ahead", [None, False, True])
def test_only_where_told_to_does_a_cpu_run_ahead(thinker: Thinker, run_ahead: bool | None) -> None:
    is_behind_another: set[bool] = set()
    launch = ModelRunner.launch

    def watch(self: ModelRunner, batch: Batch, before: InFlight | None = None) -> InFlight:
        is_behind_another.add(before is not None)
        return launch(self, batch, before)

    with mock.patch.object(ModelRunner, "launch", watch):
        run(thinker, [submit_of(1)], replace(CONFIG, run_ahead=run_ahead))
    assert is_behind_another == ({False, True} if run_ahead else {False})


def test_the_same_with_chunked_prefill(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    config = replace(config, slots=8, step_tokens=11)
    assert_same(run(thinker, [submit_of(n) for n in range(8)], config), alone)


def test_the_same_after_preemption(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    config = replace(config, num_blocks=20, block_size=8)
    with mock.patch.object(batcher_module, "MAX_HEADROOM_TOKENS", 1):
        heard = run(thinker, [submit_of(n) for n in range(8)], config)
    assert_same(heard, alone)
    assert heard.preemptions > 2


def test_the_same_after_a_resume_from_anywhere(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    for number in (1, 3):
        ids = tuple(token.token_id for token in alone[number])
        order = submit_of(number)
        orders = [replace(order, key=key_of(100 + k), published_ids=ids[:k]) for k in range(len(ids) + 1)]
        heard = run(thinker, orders, config)
        for k in range(len(ids) + 1):
            rest = [replace(token, key=key_of(100 + k)) for token in alone[number][k:]]
            assert heard.tokens.get(key_of(100 + k), []) == rest
            assert heard.ends[key_of(100 + k)].reason is FinishReason.LENGTH


def test_the_same_with_a_cached_prefix(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    number = 5
    heard = Heard()
    with running(thinker, config, heard) as (_, inbox, outbox):
        inbox.put(replace(submit_of(number), key=key_of(0)))
        listen(outbox, heard, lambda: len(heard.ends) == 1)
        inbox.put(replace(submit_of(number), key=key_of(1)))
        listen(outbox, heard, lambda: len(heard.ends) == 2)
    assert heard.started == [Started(key_of(0), 0), Started(key_of(1), 32)]
    for round_number in range(2):
        assert heard.ids(round_number) == [token.token_id for token in alone[number]]


def test_a_failing_sequence_is_found_and_the_others_go_on(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    poisoned = replace(submit_of(50), prompt_ids=(1, POISON, 2))
    failing = FailingThinker(thinker, RuntimeError("no such row"))
    orders = [*(submit_of(n) for n in range(4)), poisoned, *(submit_of(n) for n in range(4, 8))]
    heard = run(failing, orders, config)
    assert_same(heard, alone)
    end = heard.ends[key_of(50)]
    assert end.reason is FinishReason.FAILED
    assert end.error is not None
    assert end.error.code == "StepFailed"
    assert "no such row" in end.error.message
    assert failing.num_steps < 40  # 24 and the halves of one


class NoNumbersThinker(Thinker):
    """Gives no numbers behind ``POISON``."""

    def forward(self, inputs: StepInputs, kv: KVCache) -> Tensor:
        logits_SV = super().forward(inputs, kv).clone()
        for row, last in enumerate(inputs.output_rows_S):
            if inputs.input_ids_T[last] == POISON:
                logits_SV[row, 3] = float("nan")
        return logits_SV


def test_logits_that_are_no_numbers_fail_their_own_sequence(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    poisoned = [replace(submit_of(n), prompt_ids=(1, 2, POISON)) for n in (50, 51, 52, 53)]
    broken = NoNumbersThinker(thinker.weights)
    heard = run(broken, [*(submit_of(n) for n in range(8)), *poisoned], config)
    assert_same(heard, alone)
    for order in poisoned:
        end = heard.ends[order.key]
        assert end.error is not None
        assert (end.error.code, end.error.message) == ("StepFailed", "the model's logits are not numbers")
        assert order.key not in heard.tokens


def test_an_id_outside_the_vocabulary_fails_its_own_sequence(thinker: Thinker, config: EngineConfig) -> None:
    orders = [submit_of(1), replace(submit_of(2), prompt_ids=(5, 96)), submit_of(3)]
    heard = run(thinker, orders, config)
    assert [heard.ends[key_of(n)].reason.value for n in (1, 2, 3)] == ["length", "failed", "length"]


def test_a_device_failure_ends_the_engine(thinker: Thinker, config: EngineConfig) -> None:
    failing = FailingThinker(thinker, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    inbox = Inbox()
    engine = build_engine(
        failing, config, num_valid_ids=NUM_IDS, inbox=inbox, outbox=Outbox(),
        announce=lambda _: None, on_turn=lambda: None,
    )  # fmt: skip
    inbox.put(replace(submit_of(1), prompt_ids=(POISON,)))
    with pytest.raises(torch.AcceleratorError):
        engine.run()
    assert failing.num_steps == 1


def test_stop_frees_the_blocks_and_says_nothing(thinker: Thinker, config: EngineConfig) -> None:
    heard = Heard()
    with running(thinker, config, heard) as (engine, inbox, outbox):
        inbox.put(submit_of(1, max_tokens=400))
        listen(outbox, heard, lambda: len(heard.tokens) == 1)
        inbox.put(Stop(key=key_of(1)))
        inbox.put(submit_of(2))
        listen(outbox, heard, lambda: key_of(2) in heard.ends)
        assert key_of(1) not in heard.ends
        assert len(heard.ids(1)) < 400
        assert engine.load.free_blocks == engine.load.num_blocks


def test_a_suspect_is_announced_before_it_is_stepped_and_alone(
    thinker: Thinker, alone: dict[int, list[TokenOut]], config: EngineConfig
) -> None:
    heard = run(thinker, [submit_of(0), submit_of(1, alone=True), submit_of(2)], config)
    assert_same(heard, {n: alone[n] for n in range(3)})
    assert heard.announced == [key_of(1), None] * 24
    heard = run(thinker, [submit_of(1, alone=True)], config)
    assert heard.announced == [key_of(1), None]


def test_a_start_is_told_before_the_first_token(thinker: Thinker, config: EngineConfig) -> None:
    with running(thinker, config, Heard()) as (_, inbox, outbox):
        inbox.put(submit_of(1, max_tokens=1))
        first, second = outbox.get(5.0), outbox.get(5.0)
    assert first is not None
    assert (first.started, first.tokens) == ([Started(key_of(1), 0)], [])
    assert second is not None
    assert (second.started, len(second.tokens), len(second.ends)) == ([], 1, 1)


def test_a_full_outbox_holds_the_engine_but_not_its_pulse(thinker: Thinker, config: EngineConfig) -> None:
    turns: list[None] = []
    outbox = Outbox(max_outputs=1)
    inbox = Inbox()
    engine = build_engine(
        thinker, config, num_valid_ids=NUM_IDS, inbox=inbox, outbox=outbox,
        announce=lambda _: None, on_turn=lambda: turns.append(None),
    )  # fmt: skip
    inbox.put(submit_of(1))
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    thread.join(0.5)
    assert engine.load.steps == 1  # its start is in the box, its token in hand
    assert 3 < len(turns) < 12
    engine.stop()
    thread.join(5)
    assert not thread.is_alive()
