"""Asks what a page says only to whoever knows more than its letters: months, currencies, counts, sums."""

from __future__ import annotations

import re
from random import Random

from ernie_calibration.drawn_image import DrawnImage, Question, Run
from ernie_calibration.names import MONTHS, SHORT_MONTHS

MONTH, CURRENCY, COUNT, DIFFERENCE = "month in words", "currency in words", "small count", "small difference"
MONTH_QUESTIONS = ("Which month is it?", "In which month was it issued?", "What is the month in words?")
CURRENCY_QUESTIONS = ("What is the currency?", "Which currency is it?", "In what currency is the total?")
COUNT_QUESTIONS = {
    "table": ("How many rows are listed?", "How many lines has the table?"),
    "bar chart": ("How many bars are shown?", "How many values are shown?"),
    "line chart": ("How many points are shown?", "How many values are shown?"),
    "form": ("How many fields are listed?", "How many fields has the form?"),
}
DIFFERENCE_QUESTIONS = (
    "How much higher is {} than {}?",
    "By how much is {} larger than {}?",
    "What is {} minus {}?",
)
_CURRENCIES = {"$": "US dollars", "USD": "US dollars", "£": "British pounds", "EUR": "euros"}
_NUMBER_OF_MONTH = (
    re.compile(r"\d{4}-(\d\d)-\d\d"),
    re.compile(r"\d\d\.(\d\d)\.\d{4}"),
    re.compile(r"(\d\d)/"),
)
_MOST_SUBTRACTED = 99


def month_of(date: str) -> str:
    """The month of a date in one of the forms of `NameSource.date`, in words. ValueError for any other."""
    for form in _NUMBER_OF_MONTH:
        if found := form.match(date):
            return MONTHS[int(found[1]) - 1]
    return MONTHS[SHORT_MONTHS.index(date.split()[1])]


def ask_knowledge(random: Random, drawn: DrawnImage) -> list[Question]:
    """The questions that an image allows, one of each kind; none for a page of random text."""
    questions: list[Question] = []
    for question in drawn.questions:
        if question.kind == "date":
            text = random.choice(MONTH_QUESTIONS)
            answer = Run.unprinted(month_of(question.answer))
            questions.append(Question(MONTH, text, answer, (("month", question.printed),)))
        elif question.kind == "total":
            sign = re.sub(r"[\d. ]", "", question.answer)
            if sign in _CURRENCIES:
                text, answer = random.choice(CURRENCY_QUESTIONS), Run.unprinted(_CURRENCIES[sign])
                questions.append(
                    Question(CURRENCY, text, answer, (("currency", question.printed.part(sign)),))
                )
    if drawn.kind in COUNT_QUESTIONS:
        count = Run.unprinted(str(len(drawn.lines) - 1))  # the first line is a title or a header
        questions.append(Question(COUNT, random.choice(COUNT_QUESTIONS[drawn.kind]), count))
    if drawn.kind == "bar chart":
        questions += _ask_difference(random, drawn)
    return questions


def _ask_difference(random: Random, drawn: DrawnImage) -> list[Question]:
    values = [question for question in drawn.questions if question.kind == "bar value"]
    if len(values) != 2 or values[0].answer == values[1].answer:
        return []
    low, high = sorted(values, key=lambda question: int(question.answer))
    if int(high.answer) > _MOST_SUBTRACTED:
        return []
    text = random.choice(DIFFERENCE_QUESTIONS).format(high.mentions[0][0], low.mentions[0][0])
    answer = Run.unprinted(str(int(high.answer) - int(low.answer)))
    return [Question(DIFFERENCE, text, answer, (*high.mentions, *low.mentions))]
