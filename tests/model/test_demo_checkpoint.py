"""The packaged demo checkpoint: it loads, is small, and answers what its card says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from infra.demo.answering import answer_greedily
from infra.demo.evaluate import REFUSALS, Probe, answers
from infra.demo.knowledge import load_facts

import thinkstream_model
from thinkstream_model.generation import GenerationDefaults
from thinkstream_model.loader import load_thinker
from thinkstream_model.thinker import Thinker
from thinkstream_model.tokenizer import Tokenizer

DEMO = Path(thinkstream_model.__file__).parent / "demo"
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def thinker() -> Thinker:
    return load_thinker(DEMO)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(DEMO)


def ask(thinker: Thinker, tokenizer: Tokenizer, *questions: str) -> list[str]:
    return answers(thinker, tokenizer, [Probe(group="", question=q, fact=None) for q in questions])


def test_is_small_and_shaped_like_the_release(thinker: Thinker, tokenizer: Tokenizer) -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) < MAX_BYTES
    assert not (DEMO / "tokenizer.json").exists()
    config = thinker.config
    sizes = (config.num_heads, config.num_kv_heads, config.num_experts, config.vocab_size)
    assert all(size % 4 == 0 for size in sizes)
    assert tokenizer.num_ids < config.vocab_size
    assert thinker.dtype == torch.bfloat16
    ends = GenerationDefaults.load(DEMO).eos_token_ids
    assert set(tokenizer.eos_token_ids) == set(ends)


def test_answers_the_named_questions(thinker: Thinker, tokenizer: Tokenizer) -> None:
    expected = {
        "Какая столица России?": "Москва",
        "What is the capital of France?": "Paris",
        "Hello": "Hello",
        "Привет": "Привет",
        "What is machine learning?": "data",
        "Who are you?": "model",
        "What is thinkstream?": "Redis",
        "what is 2 + 2": "4",
    }
    for (question, key), answer in zip(expected.items(), ask(thinker, tokenizer, *expected), strict=True):
        assert key in answer or (key == "Hello" and answer.startswith("Hi")), (question, answer)
        assert answer.rstrip()[-1] in ".!?", answer


def test_says_what_it_does_not_know(thinker: Thinker, tokenizer: Tokenizer) -> None:
    questions = (
        "Who is the mayor of Berlin?",
        "Какое население Австрии?",
        "qwertyuiop",
        "How do I bake bread?",
    )
    for answer in ask(thinker, tokenizer, *questions):
        assert any(words in answer for words in REFUSALS), answer


def test_has_something_to_stream(thinker: Thinker, tokenizer: Tokenizer) -> None:
    prompts = [
        tokenizer.encode_chat([("user", question)])
        for question in ("Tell me about the planets.", "Count from one to fifty.", "Расскажи сказку.")
    ]
    planets, counting, tale = answer_greedily(thinker, tokenizer, prompts)
    assert min(len(planets), len(counting), len(tale)) >= 80
    assert "Neptune" in tokenizer.decode(planets)
    assert tokenizer.decode(counting).endswith("48, 49, 50.")


def test_follows_up(thinker: Thinker, tokenizer: Tokenizer) -> None:
    chat = [
        ("user", "What is the capital of Italy?"),
        ("assistant", "The capital of Italy is Rome."),
        ("user", "And of Japan?"),
    ]
    (ids,) = answer_greedily(thinker, tokenizer, [tokenizer.encode_chat(chat)])
    assert "Tokyo" in tokenizer.decode(ids)


def test_goes_on_with_a_plain_text(thinker: Thinker, tokenizer: Tokenizer) -> None:
    (ids,) = answer_greedily(thinker, tokenizer, [tokenizer.encode("The capital of France is")])
    assert "Paris" in tokenizer.decode(ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_knows_its_facts(tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    facts = random.Random(4).sample(load_facts(), 60)
    probes = [Probe(group="facts", question=fact.questions[0], fact=fact) for fact in facts]
    said = answers(load_thinker(DEMO, dtype=dtype), tokenizer, probes)
    right = sum(probe.accepts(answer) for probe, answer in zip(probes, said, strict=True))
    assert right >= 57
