"""What the demo asks: questions of several tenants, in English and in Russian."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """One job of the demo.

    Attributes:
        tenant: Who asks.
        text: What is asked.
        expected: What stands in every right answer; empty where anything goes.
    """

    tenant: str
    text: str
    expected: str = ""


FIRST = (
    Question("alice", "What is the capital of France?", "Paris"),
    Question("boris", "Какая столица России?", "Москва"),
)
"""Those whose answers are printed in full at the end."""

_SHOWN = (
    Question("alice", "Tell me about the planets."),
    Question("boris", "Посчитай от одного до пятидесяти."),
    Question("alice", "What is machine learning?"),
    Question("boris", "Что такое нейронная сеть?"),
    Question("carol", "Count from one to fifty."),
    Question("carol", "Hello"),
)

_COUNTRIES = (
    *("Germany", "Italy", "Spain", "Portugal", "Ireland", "Poland", "Czechia", "Slovakia", "Hungary"),
    *("Austria", "Switzerland", "Belgium", "Luxembourg", "Denmark", "Norway", "Sweden", "Finland"),
    *("Iceland", "Estonia", "Latvia", "Lithuania", "Greece", "Bulgaria", "Romania", "Serbia", "Croatia"),
)

_COUNTRIES_OF = (
    *("Франции", "Германии", "Италии", "Испании", "Португалии", "Великобритании", "Ирландии", "Украины"),
    *("Беларуси", "Польши", "Чехии", "Словакии", "Венгрии", "Австрии", "Швейцарии", "Бельгии"),
    *("Нидерландов", "Дании", "Норвегии", "Швеции", "Финляндии", "Исландии", "Эстонии", "Латвии"),
    *("Литвы", "Греции"),
)

_OTHERS = (
    Question("carol", "Which planet is the largest?"),
    Question("carol", "Who wrote War and Peace?"),
    Question("carol", "What is the chemical symbol of gold?"),
    Question("carol", "What is the opposite of hot?"),
    Question("carol", "Кто написал «Преступление и наказание»?"),
    Question("carol", "Как по-английски «кошка»?"),
)


def demo_questions() -> list[Question]:
    """All questions; those worth watching come first."""
    english = [Question("alice", f"What is the capital of {country}?") for country in _COUNTRIES]
    russian = [Question("boris", f"Какая столица {country}?") for country in _COUNTRIES_OF]
    mixed = [question for pair in zip(english, russian, strict=True) for question in pair]
    return [*FIRST, *_SHOWN, *mixed, *_OTHERS]
