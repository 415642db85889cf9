"""Draws names and values for documents in one language and one world."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from ernie_calibration.documents.language import Language
from ernie_calibration.names import Choice, NameSource, is_held_out, of_world

INVENTED_SHARE = 0.35
DETAILS = ("", "", "", " XL", " A4", " 2 kg", " 500 ml", " 40 cm", " No. 7", " B12")


class DocumentNames:
    """Draws names and values. `random` decides everything, so equal seeds draw equal names."""

    def __init__(self, random: Random, language: Language, held_out: bool) -> None:
        self.random = random
        self.language = language
        self.held_out = held_out
        self._latin = NameSource(random, held_out)
        self._date_form = self.choose(language.dates)
        self.currency = self.choose(language.currencies)

    def choose(self, choices: Sequence[Choice]) -> Choice:
        """One of this world's choices."""
        return self.random.choice(of_world(choices, self.held_out))

    def _name(self, words: tuple[str, ...]) -> str:
        while True:
            invented = self.random.random() < INVENTED_SHARE
            name = self.invented() if invented else self.random.choice(words)
            if is_held_out(name) == self.held_out:
                return name

    def invented(self) -> str:
        """A word that no list has, in the script of the language."""
        language, choice = self.language, self.random.choice
        if not language.onsets:
            return self._latin.invented_word()
        syllables = 2 if language.spaced else 1
        word = "".join(choice(language.onsets) + choice(language.vowels) for _ in range(syllables))
        return (word + choice(language.codas)).capitalize()

    def item(self) -> str:
        """A thing that is sold, as it begins a line."""
        name = self._name(self.language.items)
        return name[0].upper() + name[1:]

    def items(self, count: int) -> list[str]:
        """`count` different things, some with a size or a model behind them."""
        found: dict[str, str] = {}
        while len(found) < count:
            item = self.item()
            found.setdefault(item, item + self.random.choice(DETAILS))
        return list(found.values())

    def first_name(self) -> str:
        """A given name."""
        return self._name(self.language.first_names)

    def surname(self) -> str:
        """A family name."""
        return self._name(self.language.surnames)

    def person(self) -> str:
        """A whole name."""
        if not self.language.spaced:
            return self.surname() + self.first_name()
        return f"{self.first_name()} {self.surname()}"

    def company(self) -> str:
        """A vendor."""
        return self.choose(self.language.companies).format(self.surname())

    def city(self) -> str:
        """A place."""
        return self._name(self.language.cities)

    def street(self) -> str:
        """A street with its number."""
        form = self.choose(self.language.streets)
        return form.format(name=self.surname(), number=self.random.randint(1, 199))

    def town(self) -> str:
        """A place with its postal code."""
        return f"{self.random.randint(10000, 99999)} {self.city()}"

    def date(self) -> str:
        """A date, in the form of this document."""
        month, random = self.random.randint(1, 12), self.random
        name = self.language.months[month - 1]
        return self._date_form.format(
            year=random.randint(2008, 2031), month=month, day=random.randint(1, 28), name=name
        )

    def number(self) -> str:
        """The number of a document."""
        random = self.random
        forms = ("{}", "{:06d}", "A-{}", "R{}", "{}/24", "K{}-7", "2024-{}", "BX {}")
        return self.choose(forms).format(random.randint(1000, 999999))

    def phone(self) -> str:
        """A telephone number."""
        random = self.random
        return f"0{random.randint(20, 999)} {random.randint(100, 999)} {random.randint(100, 9999)}"

    def cents(self) -> int:
        """A price: small ones are more frequent."""
        return self.random.randint(45, self.random.choice((900, 4000, 25000, 250000)))

    def money(self, cents: int) -> str:
        """An amount with the currency of this document."""
        return self.currency.format(self.language.amount(cents))

    def for_sentence(self) -> dict[str, str]:
        """A value for every place of the language's set sentences but {person}."""
        return {
            "item": self.item(),
            "date": self.date(),
            "number": self.number(),
            "city": self.city(),
            "phone": self.phone(),
            "company": self.company(),
            "money": self.money(self.cents()),
        }
