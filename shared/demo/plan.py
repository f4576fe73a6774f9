"""Who the made-up customers are and what they say in which week: the same for the same seed."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Sample = dict[str, Any]

# Customers of one wave are asked every fifth week, so nobody twice within 30 days.
WAVES = 5
TOUCHPOINTS = ("Delivery", "Support", "Renewal")


@dataclass(frozen=True, slots=True)
class Person:
    """A made-up customer, as a row of an import says it."""

    external_id: str
    name: str
    email: str
    phone: str
    account: str
    manager: str
    tier: str
    annual_value: int
    language: str
    wave: int

    def row(self) -> dict[str, str]:
        """The row of the CSV."""
        return {
            "external id": self.external_id,
            "name": self.name,
            "email": self.email,
            "phone": self.phone,
            "account": self.account,
            "account manager": self.manager,
            "tier": self.tier,
            "annual value": str(self.annual_value),
            "language": self.language,
            "wave": str(self.wave),
        }


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: the score, the words (may be empty), the theme they are about, and a wish to be called."""

    score: int
    comment: str
    theme: str | None
    callback: str | None


def load() -> Sample:
    """The project's own sample."""
    with (Path(__file__).parent / "sample.toml").open("rb") as file:
        return tomllib.load(file)


def people(sample: Sample, draw: random.Random) -> list[Person]:
    """Five to twelve people at each of the sample's accounts."""
    managers = [staff["email"] for staff in sample["staff"] if staff["role"] == "agent"]
    names = [
        f"{first} {draw.choice(sample['accounts']['second'])}" for first in sample["accounts"]["first"] * 2
    ]
    accounts = [(name, "en") for name in dict.fromkeys(names)]
    accounts += [(name, "de") for name in sample["accounts"]["german"]]
    accounts += [(name, "es") for name in sample["accounts"]["spanish"]]
    found: list[Person] = []
    for number, (account, language) in enumerate(accounts):
        tier = draw.choice(sample["accounts"]["tiers"])
        value = {"gold": 60_000, "silver": 18_000, "bronze": 4_000}[tier] * draw.randint(60, 160) // 100
        domain = "".join(c for c in account.lower() if c.isascii() and c.isalnum()) + ".example"
        for _ in range(draw.randint(5, 12)):
            index = len(found)
            first, last = _name(sample, draw, language)
            found.append(
                Person(
                    external_id=f"HP-{1000 + index}",
                    name=f"{first} {last}",
                    email=f"{_ascii(first)}.{_ascii(last)}{index}@{domain}",
                    # A third can be reached by text as well; one in twelve only by text.
                    phone=f"+4915200{index:06d}" if index % 3 == 0 else "",
                    account=account,
                    manager=managers[number % len(managers)],
                    tier=tier,
                    annual_value=value,
                    language=language,
                    wave=index % WAVES,
                )
            )
    return [_text_only(person) if index % 12 == 0 else person for index, person in enumerate(found)]


def says(sample: Sample, draw: random.Random, person: Person, week: int, touchpoint: str) -> Said | None:
    """What a person answers in a week (counted from 0), or None: more than half of them say nothing."""
    if draw.random() > (0.55 if person.tier == "gold" else 0.44):
        return None
    themes = sample["themes"]
    weights = [
        (theme["before"] if week < theme["mended_week"] else theme["after"])
        * (3 if theme["touchpoint"] == touchpoint else 1)
        for theme in themes
    ]
    unhappy = min(0.6, sum(weights) / 55)
    dice = draw.random()
    if dice < unhappy:
        theme = draw.choices(themes, weights)[0]
        score = draw.choices(range(7), (3, 2, 4, 6, 6, 8, 9))[0]
        words = draw.choice(theme.get(_LANGUAGES[person.language], theme["comments"]))
        callback = draw.choices(("please", "dont", None), (2, 1, 12))[0]
        return Said(score, words if draw.random() < 0.85 else "", theme["name"], callback)
    if dice < unhappy + 0.3:
        return Said(draw.choice((7, 8, 8)), _maybe(draw, sample["praise"]["passive"], person), None, None)
    praise = {
        "en": sample["praise"]["promoter"],
        "de": sample["praise"]["german_promoter"],
        "es": sample["praise"]["spanish_promoter"],
    }
    words = draw.choice(praise[person.language]) if draw.random() < 0.6 else ""
    return Said(draw.choice((9, 9, 10, 10, 10)), words, None, None)


_LANGUAGES = {"en": "comments", "de": "german", "es": "spanish"}


def _maybe(draw: random.Random, words: list[str], person: Person) -> str:
    return draw.choice(words) if person.language == "en" and draw.random() < 0.5 else ""


def _name(sample: Sample, draw: random.Random, language: str) -> tuple[str, str]:
    prefix = {"en": "", "de": "german_", "es": "spanish_"}[language]
    return draw.choice(sample["people"][f"{prefix}first"]), draw.choice(sample["people"][f"{prefix}last"])


def _ascii(name: str) -> str:
    return name.lower().translate(str.maketrans("áéíóúñü", "aeiounu"))


def _text_only(person: Person) -> Person:
    return replace(person, email="")
