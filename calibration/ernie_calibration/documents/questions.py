"""Questions on documents, in the document's language or in English.

Owns the choice of words. Knows nothing of where answers stand.
"""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.language import Language, load_language
from ernie_calibration.pictures.picture import Question, Run, join

ENGLISH_SHARE = 0.25


class Asker:
    """Makes questions; each in English now and then, whatever the document's language is."""

    def __init__(self, random: Random, language: Language) -> None:
        self._random = random
        self._language = language

    def _ask(self, key: str, kind: str, answer: Run, **places: str) -> Question:
        in_english = self._random.random() < ENGLISH_SHARE
        language = load_language("en") if in_english else self._language
        return Question(kind, self._random.choice(language.questions[key]).format(**places), answer)

    def transcript(self, lines: list[Run]) -> Question:
        """For all that is printed."""
        return self._ask("read", "transcript", join(lines, "\n"))

    def field(self, label: str, value: Run, kind: str = "document field") -> Question:
        """For what stands beside a label."""
        return self._ask("field", kind, value, label=label)

    def item(self, key: str, item: str, value: Run) -> Question:
        """For the `price`, `quantity` or `amount` of a line item."""
        return self._ask(key, "document item", value, item=item)

    def cell(self, row: str, column: str, value: Run) -> Question:
        """For a cell of a table."""
        return self._ask("cell", "document cell", value, row=row, column=column)

    def count(self, number: int) -> Question:
        """For the number of rows, header not counted."""
        return self._ask("count", "document count", Run.unprinted(str(number)))

    def sender(self, name: Run) -> Question:
        """For who made the document."""
        return self._ask("sender", "document name", name)

    def recipient(self, name: Run) -> Question:
        """For who it is addressed to."""
        return self._ask("recipient", "document name", name)
