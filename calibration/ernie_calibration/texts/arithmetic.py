"""Makes sums told in words and solved step by step: totals, discounts, averages, rates, remainders."""

from __future__ import annotations

from random import Random

from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.names import of_world
from ernie_calibration.sample import SampleTurn

ASK = ("Show each step.", "Work it out step by step.", "Explain how you get there.", "Show your working.")


def make_sum(random: Random, names: DocumentNames) -> SampleTurn:
    """One of this world's kinds of sums, always in English."""
    turn = random.choice(of_world(MAKERS, names.held_out))(random, names)
    return SampleTurn(f"{turn.question} {names.choose(ASK)}", turn.answer, turn.kind)


def _purchase(random: Random, names: DocumentNames) -> SampleTurn:
    items = names.items(random.randint(2, 5))
    bought = [(item, random.randint(2, 19), random.randint(3, 95)) for item in items]
    listing = ", ".join(f"{count} of {item} at {price} euros each" for item, count, price in bought)
    lines = [f"{item}: {count} * {price} = {count * price}" for item, count, price in bought]
    sums = [count * price for _, count, price in bought]
    lines.append(f"Together: {' + '.join(map(str, sums))} = {sum(sums)}")
    buyer = names.person()
    lines.append(f"{buyer} pays {sum(sums)} euros.")
    return SampleTurn(f"{buyer} buys {listing}. How much is it in all?", "\n".join(lines), "text")


def _discount(random: Random, names: DocumentNames) -> SampleTurn:
    price, percent = random.randint(3, 90) * 20, random.choice((5, 10, 15, 20, 25, 30, 40))
    off = price * percent // 100
    item, shop = names.item(), names.company()
    question = (
        f"At {shop} the article {item} costs {price} euros and is reduced by {percent} percent. What is left?"
    )
    answer = (
        f"One percent of {price} is {price / 100:g}.\n"
        f"{percent} percent are {percent} * {price / 100:g} = {off}.\n"
        f"{price} - {off} = {price - off}.\nThe article {item} now costs {price - off} euros."
    )
    return SampleTurn(question, answer, "text")


def _average(random: Random, names: DocumentNames) -> SampleTurn:
    count = random.randint(3, 7)
    values = [random.randint(4, 180) for _ in range(count - 1)]
    values.append(count * random.randint(1, 30) + -sum(values) % count)  # so that the average is whole
    total = sum(values)
    lines = [f"There are {count} numbers.", f"Their sum: {' + '.join(map(str, values))} = {total}"]
    lines += [f"Divided: {total} / {count} = {total // count}", f"The average is {total // count}."]
    places = ", ".join(f"{names.city()} {value}" for value in values)
    return SampleTurn(f"Visitors by town: {places}. What is the average?", "\n".join(lines), "text")


def _journey(random: Random, names: DocumentNames) -> SampleTurn:
    speed, hours, extra = random.randint(4, 22) * 5, random.randint(2, 9), random.randint(1, 3) * 15
    first, second = names.city(), names.city()
    part = speed * extra / 60
    question = (
        f"A train runs from {first} to {second} at {speed} kilometres an hour and takes {hours} hours and "
        f"{extra} minutes. How long is the way?"
    )
    answer = (
        f"In {hours} hours: {hours} * {speed} = {hours * speed} km.\n"
        f"{extra} minutes are {extra / 60:g} of an hour: {extra / 60:g} * {speed} = {part:g} km.\n"
        f"{hours * speed} + {part:g} = {hours * speed + part:g}.\n"
        f"The way is {hours * speed + part:g} km long."
    )
    return SampleTurn(question, answer, "text")


def _boxes(random: Random, names: DocumentNames) -> SampleTurn:
    total, size = random.randint(150, 990), random.randint(7, 24)
    full, rest = divmod(total, size)
    item = names.item()
    answer = (
        f"{total} / {size} is {full} with a remainder.\n{full} * {size} = {full * size}.\n"
        f"{total} - {full * size} = {rest}.\nSo {full} boxes are full and {rest} pieces are left."
    )
    question = f"{total} pieces of {item} go into boxes of {size}. How many are filled? What is left?"
    return SampleTurn(question, answer, "text")


MAKERS = (_purchase, _discount, _average, _journey, _boxes)
