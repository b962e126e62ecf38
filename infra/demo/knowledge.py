"""Reads `facts/`: tables, question families and written blocks become one list of facts.

A fact is a meaning: every way to ask for it and every way to answer. This module knows files and
templates; how questions are roughened and packed for training is `corpus`'s.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FACTS = Path(__file__).parent / "facts"
CONTINENTS_RU = {
    "Europe": "Европа",
    "Asia": "Азия",
    "Africa": "Африка",
    "North America": "Северная Америка",
    "South America": "Южная Америка",
    "Oceania": "Океания",
}
WOMEN_RU = ("Джейн", "Шарлотта", "Эмили", "Мэри")
WORDS = ("noun", "role", "plural", "verb", "adjective")
GREATEST_SUMMAND = 20
GREATEST_FACTOR = 12

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing the model is to know.

    Attributes:
        family: Where it comes from: a family's name or a file's.
        subject: What it is about, as a follow-up question would name it; empty when there is none.
        questions: Wordings seen in training.
        held_out: Wordings kept from training.
        answers: Whole sentences, any of which is right.
        follow_ups: Short questions that ask the same after a question of the same family.
        keys: Words of which every right answer contains one.
    """

    family: str
    subject: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]
    follow_ups: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def russian(self) -> bool:
        """Whether it is answered in Russian."""
        return re.search("[а-яё]", self.answers[0].lower()) is not None

    def is_answered_by(self, text: str) -> bool:
        """Say whether ``text`` contains one of the keys, at the start of a word; numbers must stand alone."""
        return any(_key_pattern(key).search(text) for key in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Questions of one language which the model is to answer with a refusal.

    ``ask`` may speak of anything, known or not; ``ask_strange`` only of what no fact is about. ``{x}`` and
    ``{y}`` stand for things, ``{n}`` and ``{m}`` for numbers, ``{noun}`` and its like for one of ``words``.
    """

    refusals: tuple[str, ...]
    ask: tuple[str, ...]
    ask_strange: tuple[str, ...]
    held_out: tuple[str, ...]
    strange: tuple[str, ...]
    questions: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]


def load_facts() -> list[Fact]:
    """Read every fact, in a fixed order."""
    facts = [fact for family in load_families() for fact in _family_facts(family)]
    for name in ("questions", "chat", "long"):
        facts.extend(_block_facts(name))
    return _without_repeats(facts)


def load_unknown() -> dict[str, Unknown]:
    """Read what the model is not to know, by language (`en`, `ru`)."""
    raw = json.loads((FACTS / "unknown.json").read_text(encoding="utf-8"))
    return {
        language: Unknown(
            **{name: tuple(texts) for name, texts in fields.items() if name not in WORDS},
            words={name: tuple(fields[name]) for name in WORDS},
        )
        for language, fields in raw.items()
    }


def load_families() -> list[dict[str, Any]]:
    """Read the question families as they stand in `families.json`."""
    families: list[dict[str, Any]] = json.loads((FACTS / "families.json").read_text(encoding="utf-8"))
    return families


def rows(table: str) -> list[Row]:
    """Return the rows of a table, with the fields that are derived from others."""
    made = {"sums": _sums, "differences": _differences, "products": _products, "authors": _authors}
    if table in made:
        return [_with_forms(row) for row in made[table]()]
    if table.startswith("opposites-"):
        language = table.removeprefix("opposites-")
        pairs = [row for row in _read("opposites") if row["language"] == language]
        return [_with_forms(row) for pair in pairs for row in _both_ways(pair)]
    return [_with_forms(row) for row in _read(table)]


def _family_facts(family: Mapping[str, Any]) -> Iterator[Fact]:
    """Fill a family's templates with the rows of its table; rows with the same question are one fact."""
    by_subject: dict[str, list[Row]] = {}
    for row in rows(family["table"]):
        by_subject.setdefault(family["ask"][0].format(**row), []).append(row)
    for group in by_subject.values():
        row = group[0]

        def fill(name: str, row: Row = row) -> tuple[str, ...]:
            return tuple(template.format(**row) for template in family[name])

        answers = [template.format(**each) for each in group for template in family["answer"]]
        yield Fact(
            family=family["name"],
            subject=row.get(family["subject"], ""),
            questions=fill("ask"),
            held_out=fill("held_out"),
            answers=tuple(dict.fromkeys(answers)),
            follow_ups=fill("follow"),
            keys=tuple(dict.fromkeys(_bare(family["key"].format(**each)) for each in group)),
        )


def _block_facts(name: str) -> Iterator[Fact]:
    """Read the blocks of a written file."""
    marks = {"?": "questions", "~": "held_out", "!": "answers", "=": "keys"}
    for block in (FACTS / f"{name}.txt").read_text(encoding="utf-8").split("\n\n"):
        parts: dict[str, list[str]] = {field: [] for field in marks.values()}
        for line in block.splitlines():
            if not line.startswith("#"):
                parts[marks[line[0]]].append(line[2:])
        if parts["questions"]:
            keys = tuple(key for line in parts["keys"] for key in line.split("|"))
            yield Fact(
                family=name,
                subject="",
                questions=tuple(parts["questions"]),
                held_out=tuple(parts["held_out"]),
                answers=tuple(parts["answers"]),
                follow_ups=(),
                keys=keys,
            )


def _without_repeats(facts: list[Fact]) -> list[Fact]:
    """Leave a question that several facts share (`What is Singapore?`) to the last of them alone."""
    owner = {question.lower(): fact for fact in facts for question in fact.questions + fact.held_out}

    def own(fact: Fact, questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(question for question in questions if owner[question.lower()] is fact)

    return [
        replace(fact, questions=own(fact, fact.questions), held_out=own(fact, fact.held_out))
        for fact in facts
    ]


def _read(table: str) -> list[Row]:
    with (FACTS / f"{table}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _with_forms(row: Row) -> Row:
    """Add to each field its capitalised form, its form with an article and its form without one."""
    forms = dict(row)
    if "continent" in row:
        forms["continent_ru"] = CONTINENTS_RU[row["continent"]]
    if "term" in row:
        forms["bare"] = _bare(row["term"])
    for name, value in tuple(forms.items()):
        forms[f"an_{name}"] = f"{'an' if value[:1].lower() in 'aeiou' else 'a'} {value}"
    for name, value in tuple(forms.items()):
        forms[_capital(name)] = _capital(value)
    return forms


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bare(text: str) -> str:
    return re.sub("^(the|an|a) ", "", text)


def _both_ways(pair: Row) -> tuple[Row, Row]:
    return pair, {"word": pair["opposite"], "opposite": pair["word"]}


def _sums() -> Iterator[Row]:
    for a in range(GREATEST_SUMMAND + 1):
        for b in range(GREATEST_SUMMAND + 1):
            yield {"a": str(a), "b": str(b), "c": str(a + b)}


def _differences() -> Iterator[Row]:
    for a in range(GREATEST_SUMMAND + 1):
        for b in range(a + 1):
            yield {"a": str(a), "b": str(b), "c": str(a - b)}


def _products() -> Iterator[Row]:
    for a in range(GREATEST_FACTOR + 1):
        for b in range(GREATEST_FACTOR + 1):
            yield {"a": str(a), "b": str(b), "c": str(a * b)}


def _authors() -> Iterator[Row]:
    """Turn the table of books around: one row an author, the books joined in both languages."""
    by_author: dict[str, list[Row]] = {}
    for row in _read("books"):
        by_author.setdefault(row["author"], []).append(row)
    for author, books in by_author.items():
        author_ru = books[0]["author_ru"]
        women = author_ru.split()[0] in WOMEN_RU
        brothers = author_ru.startswith("братья")
        yield {
            "author": author,
            "surname": author.split()[-1] if not brothers else "Strugatsky",
            "book": books[0]["book"],
            "books": " and ".join(book["book"] for book in books),
            "author_ru": author_ru,
            "surname_ru": author_ru.split()[-1],
            "who_ru": "Кто такие" if brothers else "Кто такая" if women else "Кто такой",
            "book_ru": books[0]["book_ru"],
            "books_ru": " и ".join(f"«{book['book_ru']}»" for book in books),
        }


def _key_pattern(key: str) -> re.Pattern[str]:
    whole = re.fullmatch("[0-9]+|[A-Z][a-z]?", key) is not None
    return re.compile(
        rf"(?<!\w){re.escape(key)}" + (r"(?!\w)" if whole else ""), 0 if whole else re.IGNORECASE
    )
