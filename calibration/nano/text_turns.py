"""Text-only conversations: small sums, months, comparisons, who nano is. They keep the text bank honest."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ernie_calibration.pictures import Run
from ernie_calibration.pictures.names import MONTHS, NameSource
from nano.conversation import Turn, some_as_history

GREETINGS = {
    "Hello!": "Hello! Show me a picture and ask about it.",
    "Hi": "Hello! Show me a picture and ask about it.",
    "Who are you?": "I am nano, a tiny ERNIE.",
    "What are you?": "I am nano, a tiny ERNIE.",
    "What can you do?": "I read invoices, receipts, forms, tables and charts.",
    "Thank you!": "You are welcome.",
    "Thanks": "You are welcome.",
    "Goodbye": "Goodbye!",
}
DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _turn(question: str, answer: str) -> Turn:
    return Turn(question, Run.unprinted(answer))


def _sum(random: Random) -> Turn:
    first, second = random.randint(0, 20), random.randint(0, 20)
    if random.random() < 0.5:
        return _turn(f"What is {first} plus {second}?", str(first + second))
    first, second = max(first, second), min(first, second)
    return _turn(f"What is {first} minus {second}?", str(first - second))


def _month(random: Random) -> Turn:
    index = random.randrange(12)
    form = random.randrange(3)
    if form == 0:
        return _turn(f"Which month comes after {MONTHS[index]}?", MONTHS[(index + 1) % 12])
    if form == 1:
        return _turn(f"Which month comes before {MONTHS[index]}?", MONTHS[index - 1])
    return _turn(f"How many days has {MONTHS[index]}?", str(DAYS[index]))


def _lookup(random: Random, names: NameSource) -> Turn:
    items = names.items(3)
    prices = random.sample(range(2, 99), 3)
    listing = ", ".join(f"{item} {price}" for item, price in zip(items, prices, strict=True))
    index = random.randrange(3)
    form = random.randrange(3)
    if form == 0:
        return _turn(f"{listing}. What is the price of {items[index]}?", str(prices[index]))
    wanted, word = (max(prices), "highest") if form == 1 else (min(prices), "lowest")
    return _turn(f"{listing}. Which has the {word} price?", items[prices.index(wanted)])


def _greeting(random: Random) -> Turn:
    question = random.choice(list(GREETINGS))
    return _turn(question, GREETINGS[question])


def text_turns(random: Random, names: NameSource, count: int) -> list[Turn]:
    """`count` unrelated turns without a picture."""
    makers: tuple[Callable[[], Turn], ...] = (
        lambda: _sum(random),
        lambda: _sum(random),
        lambda: _month(random),
        lambda: _lookup(random, names),
        lambda: _lookup(random, names),
        lambda: _greeting(random),
    )
    return some_as_history(random, [random.choice(makers)() for _ in range(count)])
