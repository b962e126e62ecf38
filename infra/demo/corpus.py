"""Makes conversations out of facts: endless, random, the same for the same seed.

Questions are roughened as people type them (case, end marks, typos, small words before and after), facts
are mixed with questions that deserve a refusal, and some texts are plain completions without a chat.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial

from .knowledge import Fact, Unknown, load_facts, load_families, load_unknown, rows

# How often a fact of a family is asked; 1 where nothing is said. Sums are many and alike.
WEIGHTS = {
    "sum-en": 0.25, "sum-ru": 0.25, "sum": 0.25,
    "difference-en": 0.25, "difference-ru": 0.25, "difference": 0.25,
    "product-en": 0.4, "product-ru": 0.4, "product": 0.4,
    "questions": 1.6, "chat": 4.0, "long": 3.0, "term-en": 1.6, "term-ru": 1.6,
}  # fmt: skip
UNKNOWN_SHARE = 0.22
COMPLETION_SHARE = 0.1
SYSTEM_SHARE = 0.1
FOLLOW_UP_SHARE = 0.3

BEFORE = {
    "en": (
        "Please tell me: ", "Hey, ", "Hello! ", "Hi, ", "Please, ", "Tell me, ", "I wonder: ", "Excuse me, ",
        "So, ", "Quick question: ", "Can you tell me: ", "Question: ", "OK, ", "Well, ",
    ),
    "ru": (
        "Скажи, ", "Скажите, ", "Подскажи, ", "Привет! ", "Пожалуйста, ", "Слушай, ", "Интересно, ",
        "Вопрос: ", "А ", "Скажи пожалуйста, ", "Скажи мне, ", "Ответь, ", "Напомни, ", "Не знаешь, ",
        "Хочу узнать, ", "Можешь сказать, ",
    ),
}  # fmt: skip
# "What is gold?" also as "Do you know what gold is?".
INDIRECT = ("Tell me", "Do you know", "I want to know", "Can you say")
DIRECT = re.compile(r"(What|Who|Where|Which \w+) (is|was) ([^?]+)\?")
AFTER = {"en": (" please", " Thanks!", " Please."), "ru": (" пожалуйста", " Спасибо!", " Пожалуйста.")}
SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer in one sentence.",
    "You are the demonstration model of thinkstream.",
    "Ты полезный помощник.",
    "Отвечай кратко.",
    "Be concise and polite.",
)
SYLLABLES = {
    "en": (
        "ba be bi bo bu da de di do du fa fe fi ga go gu ka ke ki ko la le li lo lu ma me mi mo na ne no "
        "pa pe po ra re ri ro sa se so ta te to tu va ve vi wo xa ya za zi zor nia land stan ton ville "
        "grad lax bur quin fle tro plo"
    ),
    "ru": (
        "ба бе би бо бу ва ве во га го гу да де до жа жу за зи зо ка ки ко ла ле ло лу ма ме мо на не но "
        "па пе по ра ре ри ро са се со та те то ту фа фо ха хо ча чу ша шу щу бур гля кво трям плю стан "
        "ляндия град ния зор кс"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns of a chat under an optional system message; or, where ``chat`` is false, one plain text."""

    turns: tuple[Turn, ...]
    system: str | None = None
    chat: bool = True


class Corpus:
    """An endless stream of conversations."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._facts = load_facts()
        self._unknown = load_unknown()
        self._askable = [fact for fact in self._facts if fact.questions]
        self._weights = _running_sums([WEIGHTS.get(fact.family, 1.0) for fact in self._askable])
        self._siblings: dict[str, list[Fact]] = {}
        for fact in self._facts:
            if fact.follow_ups:
                self._siblings.setdefault(fact.family, []).append(fact)
        self._known = {"en": known_names(russian=False), "ru": known_names(russian=True)}
        self._fillable = {"en": _fillable(russian=False), "ru": _fillable(russian=True)}

    def conversations(self) -> Iterator[Conversation]:
        """Yield conversations for ever."""
        while True:
            yield self._completion() if self._random.random() < COMPLETION_SHARE else self._chat()

    def _chat(self) -> Conversation:
        turns: list[Turn] = []
        for _ in range(self._random.choice((1, 1, 1, 1, 1, 2, 2, 3, 5, 10))):
            if self._random.random() < UNKNOWN_SHARE:
                turns.append(self._refusal())
                continue
            fact = self._fact()
            turns.append(self._turn(fact, self._random.choice(fact.questions)))
            if fact.follow_ups and self._random.random() < FOLLOW_UP_SHARE:
                other = self._random.choice(self._siblings[fact.family])
                turns.append(self._turn(other, self._random.choice(other.follow_ups)))
        system = self._random.choice(SYSTEM) if self._random.random() < SYSTEM_SHARE else None
        return Conversation(turns=tuple(turns), system=system)

    def _completion(self) -> Conversation:
        """A question with its answer after a space or a new line, or the bare statement itself."""
        if self._random.random() < UNKNOWN_SHARE:
            turn = self._refusal()
        else:
            fact = self._fact()
            if self._random.random() < 0.5:
                return Conversation(
                    turns=(Turn(question="", answer=self._random.choice(fact.answers)),), chat=False
                )
            turn = self._turn(fact, self._random.choice(fact.questions))
        gap = self._random.choice(("\n", " "))
        return Conversation(turns=(Turn(question=turn.question, answer=gap + turn.answer),), chat=False)

    def _fact(self) -> Fact:
        return self._random.choices(self._askable, cum_weights=self._weights)[0]

    def _turn(self, fact: Fact, question: str) -> Turn:
        language = "ru" if fact.russian else "en"
        return Turn(
            question=roughen(question, language, self._random), answer=self._random.choice(fact.answers)
        )

    def _refusal(self) -> Turn:
        language = self._random.choice(("en", "ru"))
        unknown = self._unknown[language]
        question = unknown_question(
            unknown, language, self._known[language], self._fillable[language], self._random
        )
        return Turn(
            question=roughen(question, language, self._random), answer=self._random.choice(unknown.refusals)
        )


def unknown_question(
    unknown: Unknown,
    language: str,
    known: list[str],
    fillable: list[Callable[[str], str]],
    rng: random.Random,
) -> str:
    """Make a question that no fact answers."""
    kind = rng.random()
    if kind < 0.08:
        return rng.choice(unknown.questions)
    if kind < 0.36:
        return rng.choice(fillable)(_strange(unknown, language, known, rng))
    if kind < 0.5:
        return _fill(rng.choice(unknown.ask_strange), lambda: _strange(unknown, language, known, rng), rng)
    things = [rng.choice(known), rng.choice(known), _strange(unknown, language, known, rng)]
    template = rng.choice(unknown.ask)
    for name, words in unknown.words.items():
        template = template.replace("{" + name + "}", rng.choice(words))
    return _fill(template, lambda: rng.choice(things), rng)


def known_names(*, russian: bool) -> list[str]:
    """Names that facts are about, for questions that ask something else about them."""
    fields = {
        "countries": ("country_ru", "country_ru_genitive", "capital_ru")
        if russian
        else ("country", "capital"),
        "elements": ("element_ru", "element_ru_genitive") if russian else ("element",),
        "books": ("book_ru", "author_ru") if russian else ("book", "author"),
        "animals": ("animal_ru",) if russian else ("an_animal",),
        "terms.ru" if russian else "terms.en": ("term",),
    }
    return [row[field] for table, names in fields.items() for row in rows(table) for field in names]


def _fillable(*, russian: bool) -> list[Callable[[str], str]]:
    """Templates of the families with one place for a subject, to be filled with something strange."""
    makers: list[Callable[[str], str]] = []
    for family in load_families():
        name = family["subject"]
        if not name or family["name"].endswith("-ru") is not russian or family["name"].startswith("term"):
            continue
        for template in family["ask"]:
            for field in (name, f"an_{name}"):
                place = "{" + field + "}"
                if template.count("{") == 1 and place in template:
                    makers.append(partial(template.replace, place))
    return makers


def _fill(template: str, thing: Callable[[], str], rng: random.Random) -> str:
    text = template.replace("{n}", str(_large_number(rng))).replace(
        "{m}", str(rng.choice((rng.randrange(2, 20), _large_number(rng))))
    )
    while "{x}" in text:
        text = text.replace("{x}", thing(), 1)
    while "{y}" in text:
        text = text.replace("{y}", thing(), 1)
    return text


def _large_number(rng: random.Random) -> int:
    return rng.choice((rng.randrange(21, 100), rng.randrange(100, 1000), rng.randrange(1000, 10000)))


def _strange(unknown: Unknown, language: str, known: list[str], rng: random.Random) -> str:
    """Something no fact is about: a thing of the world, two known names grown together, or a made-up word."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(unknown.strange)
    if kind < 0.7:
        return _blend(known, rng)
    syllables = SYLLABLES[language].split()
    word = "".join(rng.choice(syllables) for _ in range(rng.choice((2, 3, 3, 4))))
    return word.capitalize() if rng.random() < 0.6 else word


def _blend(known: list[str], rng: random.Random) -> str:
    """Join the head of one known name to the tail of another, far enough from both to be no typing error."""
    while True:
        head, tail = (rng.choice(known).split()[-1] for _ in range(2))
        if len(head) < 5 or len(tail) < 5:
            continue
        word = head[: rng.randrange(2, len(head) - 2)] + tail[-rng.randrange(3, len(tail) - 1) :].lower()
        if all(SequenceMatcher(None, word.lower(), name.lower()).ratio() < 0.75 for name in (head, tail)):
            return word


def roughen(question: str, language: str, rng: random.Random) -> str:
    """Type a question as people do; most of the time leave it as it is."""
    direct = DIRECT.fullmatch(question)
    if direct is not None and rng.random() < 0.08:
        asks, verb, rest = direct.groups()
        question = f"{rng.choice(INDIRECT)} {asks.lower()} {rest} {verb}" + rng.choice("?.")
    if rng.random() < 0.1:
        before = rng.choice(BEFORE[language])
        question = before + (question[0].lower() + question[1:] if before.rstrip()[-1] in ",:А" else question)
    if rng.random() < 0.03:
        question = question.rstrip("?.!") + rng.choice(AFTER[language])
    if rng.random() < 0.25:
        question = question.rstrip("?.!") or question
    if rng.random() < 0.2:
        question = question.lower()
    elif rng.random() < 0.02:
        question = question.upper()
    if rng.random() < 0.5:
        question = question.replace("ё", "е").replace("Ё", "Е")
    if rng.random() < 0.06:
        question = _mistype(question, rng)
    return question


def _mistype(text: str, rng: random.Random) -> str:
    """Swap, drop or double a letter inside one word of at least five letters."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    at = rng.randrange(1, len(word) - 1)
    words[place] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[: at + 1] + word[at:],
        )
    )
    return " ".join(words)


def _running_sums(weights: list[float]) -> list[float]:
    total, sums = 0.0, list[float]()
    for weight in weights:
        total += weight
        sums.append(total)
    return sums
