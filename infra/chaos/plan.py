"""What the readers ask for: a pure function of the seed, so that a restarted reader asks the same again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from thinkstream_client.records import Message, Request, SamplingParams

TENANTS = ("alice", "boris", "carol")
CLASSES = ("high", "normal", "normal", "low")

_QUESTIONS = (
    "Tell me about the planets.",
    "Count from one to fifty.",
    "What is machine learning?",
    "Посчитай от одного до пятидесяти.",
    "Что такое нейронная сеть?",
    "Какая столица России?",
    "What is the capital of France?",
    "Who wrote War and Peace?",
)
_BEGINNINGS = ("Once upon a time", "The number", "В начале было", "Она сказала, что")
_STOP_SHARE = 8  # one request in so many has a stop string
_CANCEL_SHARE = 16
_DEADLINE_SHARE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """One job of a run.

    Attributes:
        number: Its place in the run.
        job_id: Its id.
        tenant: Whose it is.
        priority: Its class.
        stream: Whether tokens come one by one, or sixteen together.
        spec: Which of the run's requests it is.
        cancel_after: Tokens after which its reader cancels it.
        deadline_s: Time after which it is not wanted any more.
    """

    number: int
    job_id: str
    tenant: str
    priority: str
    stream: bool
    spec: int
    cancel_after: int | None
    deadline_s: float | None


def make_specs(seed: int, count: int) -> list[Request]:
    """The different requests of a run: greedy and sampled, short and long, chats and raw text."""
    return [_spec(random.Random(f"spec {seed} {i}"), i) for i in range(count)]


def make_job(seed: int, number: int, num_specs: int) -> JobPlan:
    """The job of this number."""
    rng = random.Random(f"job {seed} {number}")
    spec = rng.randrange(num_specs)
    cancel_after = rng.randint(1, 40) if rng.randrange(_CANCEL_SHARE) == 0 else None
    deadline_s = rng.uniform(0.3, 4.0) if rng.randrange(_DEADLINE_SHARE) == 0 else None
    return JobPlan(
        number=number,
        job_id=f"chaos-{seed}-{number}",
        tenant=rng.choice(TENANTS),
        priority=rng.choice(CLASSES),
        stream=rng.random() < 0.7,
        spec=spec,
        cancel_after=cancel_after,
        deadline_s=deadline_s,
    )


def _spec(rng: random.Random, number: int) -> Request:
    is_greedy = number % 3 == 0
    sampling = SamplingParams(
        temperature=0.0 if is_greedy else rng.choice((0.7, 1.0, 1.3)),
        top_p=None if is_greedy else rng.choice((1.0, 0.95)),
        top_k=None if is_greedy else rng.choice((0, 40)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.1)),
        seed=rng.getrandbits(63),
        max_tokens=rng.randint(16, 240),
        # Most run their full length: an answer of six tokens is seldom hit.
        ignore_eos=number % 4 != 0,
        stop=(
            rng.choice(
                (" and", "seven", "и", "."),
            ),
        )
        if rng.randrange(_STOP_SHARE) == 0
        else (),
    )
    if number % 2:
        return Request(prompt=f"{rng.choice(_BEGINNINGS)} {rng.randint(1, 99)}", sampling=sampling)
    return Request(messages=(Message("user", rng.choice(_QUESTIONS)),), sampling=sampling)
