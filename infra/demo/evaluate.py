"""Measures the demo checkpoint through the served Thinker: `python -m infra.demo.evaluate FOLDER`.

Greedy answers to every fact in its first wording and in one drawn wording as people type it, to wordings
kept from training, to follow-ups, to questions late in a long chat, to plain completions, and to questions
that deserve a refusal. Prints the shares that are right and, with `--wrong`, what was said instead.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from thinkstream_model.loader import load_thinker
from thinkstream_model.thinker import Thinker
from thinkstream_model.tokenizer import Tokenizer

from .answering import answer_greedily
from .corpus import known_names, roughen
from .knowledge import Fact, load_facts, load_unknown

BATCH = 128
LONG = ("long",)
REFUSALS = ("do not know", "не знаю")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question and what makes an answer right; no fact means that a refusal is right.

    ``before`` are the earlier messages of the chat; None asks for a plain completion instead of a chat.
    """

    group: str
    question: str
    fact: Fact | None
    before: tuple[tuple[str, str], ...] | None = ()

    def prompt(self, tokenizer: Tokenizer) -> list[int]:
        """Return the token ids that put the question."""
        if self.before is None:
            return tokenizer.encode(self.question)
        return tokenizer.encode_chat([*self.before, ("user", self.question)])

    def accepts(self, answer: str) -> bool:
        """Say whether ``answer`` is right."""
        refused = any(words in answer for words in REFUSALS)
        return refused if self.fact is None else not refused and self.fact.is_answered_by(answer)


def probes(share: float, seed: int) -> Iterator[Probe]:
    """Make the probes; ``share`` below one draws that part of them."""
    rng = random.Random(seed)
    facts = load_facts()
    yield from (probe for fact in facts if rng.random() < share for probe in _fact_probes(fact, rng))
    for fact in facts:
        for question in fact.held_out:
            if rng.random() < share:
                yield Probe(group="held-out wordings", question=question, fact=fact)
    yield from _chat_probes([fact for fact in facts if fact.family not in LONG], round(400 * share), rng)
    for language, unknown in load_unknown().items():
        known = known_names(russian=language == "ru")
        for _ in range(round(200 * share)):
            template = rng.choice(unknown.held_out)
            question = template.replace("{x}", rng.choice(known)).replace("{y}", rng.choice(unknown.strange))
            yield Probe(group="unknown", question=question, fact=None)


def _fact_probes(fact: Fact, rng: random.Random) -> Iterator[Probe]:
    language = "ru" if fact.russian else "en"
    yield Probe(group="facts", question=fact.questions[0], fact=fact)
    typed = roughen(rng.choice(fact.questions), language, rng)
    yield Probe(group="wordings as typed", question=typed, fact=fact)
    yield Probe(group="completions", question=fact.questions[0], fact=fact, before=None)


def _chat_probes(facts: list[Fact], number: int, rng: random.Random) -> Iterator[Probe]:
    """Ask follow-ups after a question of the same family, and anything after twenty other turns."""
    by_family: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.follow_ups:
            by_family.setdefault(fact.family, []).append(fact)
    for _ in range(number):
        first, second = rng.sample(by_family[rng.choice(sorted(by_family))], 2)
        question = rng.choice(second.follow_ups)
        yield Probe(group="follow-ups", question=question, fact=second, before=_turn(first))
        *earlier, last = rng.sample(facts, 21)
        history = tuple(message for fact in earlier for message in _turn(fact))
        yield Probe(group="after 20 turns", question=last.questions[0], fact=last, before=history)


def _turn(fact: Fact) -> tuple[tuple[str, str], ...]:
    return ("user", fact.questions[0]), ("assistant", fact.answers[0])


def answers(thinker: Thinker, tokenizer: Tokenizer, asked: Sequence[Probe]) -> list[str]:
    """Answer the probes, alike lengths together, so that a batch wastes little on its longest member."""
    prompts = [probe.prompt(tokenizer) for probe in asked]
    order = sorted(range(len(asked)), key=lambda place: (len(prompts[place]), prompts[place]))
    texts = [""] * len(asked)
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        batch = answer_greedily(thinker, tokenizer, [prompts[place] for place in places])
        for place, ids in zip(places, batch, strict=True):
            texts[place] = tokenizer.decode(ids)
    return texts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--share", type=float, default=1.0, help="part of the facts to ask for")
    parser.add_argument("--wrong", action="store_true", help="print the wrong answers")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    thinker = load_thinker(arguments.folder, device=device, dtype=getattr(torch, arguments.dtype))
    tokenizer = Tokenizer.load(arguments.folder)
    asked = list(probes(arguments.share, seed=0))
    right: dict[str, list[bool]] = {}
    for probe, answer in zip(asked, answers(thinker, tokenizer, asked), strict=True):
        accepted = probe.accepts(answer)
        right.setdefault(probe.group, []).append(accepted)
        if arguments.wrong and not accepted:
            print(f"{probe.group}: {probe.question!r} -> {answer!r}")
    for group, marks in sorted(right.items()):
        print(f"{group}: {sum(marks)} of {len(marks)} ({sum(marks) / len(marks):.1%})")


if __name__ == "__main__":
    main()
