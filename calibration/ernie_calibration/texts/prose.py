"""Makes running text: letters, translations of set sentences, explanations, lists, summaries of tables.

Each maker returns a question and its answer.
"""

from __future__ import annotations

from random import Random

from ernie_calibration.charts.series import draw_series, transcript
from ernie_calibration.documents.language import CODES, Language, load_language
from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.names import NameSource, of_world

TRANSLATE = ("Translate into {}: {}", "What is this in {}? {}", "Write in {}: {}", "Say this in {}: {}")
LETTER = (
    "Write a letter to {}, subject: {}.",
    "Draft a message to {} about: {}.",
    "{} is to hear of this: {}. Write it.",
)
EXPLAIN = ("What is a {}, and what is it for?", "Explain what a {} is.", "Tell me about the {}.")
SAME_EVERYWHERE = ("person", "item", "number", "city", "phone", "company")
SUMMARY = (
    "Sum this table up in a few sentences.",
    "What does this table say?",
    "Describe these figures in words.",
)
MATERIALS = "wood steel glass wool paper clay copper linen rubber stone silk tin".split()
PLACES = (
    "kitchens workshops offices gardens ships schools hospitals theatres stations museums barns libraries"
).split()
USES = (
    "keep things dry, hold several parts together, measure how much is left, carry small goods, let "
    "light in and keep the wind out, cut along a straight line, store warmth through the night, mark "
    "where a path begins, lift what is too heavy for one person, show who has come and gone, divide a "
    "room without a wall, clean what water alone does not"
).split(", ")
TRAITS = (
    "light, cheap, sturdy, quiet, easy to repair, slow to wear, simple, safe, old-fashioned, rare"
).split(", ")
FLAWS = (
    "rust, bend in the heat, break when dropped, lose colour, take up much room, need oil, attract dust, leak"
).split(", ")
CARE = (
    "wiped once a week",
    "kept out of the sun",
    "checked each spring",
    "stored upright",
    "aired now and then",
    "sharpened by hand",
)


def make_prose(random: Random, names: DocumentNames) -> tuple[str, str]:
    """One of the kinds; both worlds have all kinds, with names, sentences and words of their own."""
    return random.choice(MAKERS)(random, names)


def fill(sentence: str, names: DocumentNames, values: dict[str, str] | None = None) -> str:
    """A set sentence with drawn names; `values` in place of some."""
    drawn = {"person": names.person(), **names.for_sentence()}
    return sentence.format(**drawn | (values or {}))


def _letter(random: Random, names: DocumentNames) -> tuple[str, str]:
    language, person = names.language, names.person()
    subject = names.choose(language.subjects)
    sentences = of_world(language.sentences, names.held_out)
    random.shuffle(sentences)
    body = [fill(sentence, names, {"person": person}) for sentence in sentences[: random.randint(3, 7)]]
    greeting = names.choose(language.greetings).format(person=person, surname=names.surname())
    paragraphs = [_blank(language).join(part) for part in (body[:3], body[3:]) if part]
    closing = f"{names.choose(language.closings)}\n{names.person()}"
    return names.choose(LETTER).format(person, subject), "\n\n".join((greeting, *paragraphs, closing))


def _translation(random: Random, names: DocumentNames) -> tuple[str, str]:
    """Line `n` of `sentences` says the same in every language."""
    languages = [language for language in map(load_language, CODES) if language is not names.language]
    other = random.choice(languages)
    number = len(names.language.sentences)
    places = random.sample(of_world(range(number), names.held_out), random.randint(1, 3))
    asked, answered = [], []
    for place in places:
        values = {
            "date": f"{random.randint(2008, 2031)}-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}",
            "money": f"{random.randint(20, 9999)} EUR",
            **{key: fill(f"{{{key}}}", names) for key in SAME_EVERYWHERE},
        }
        asked.append(fill(names.language.sentences[place], names, values))
        answered.append(fill(other.sentences[place], names, values))
    question = names.choose(TRANSLATE).format(other.name, _blank(names.language).join(asked))
    return question, _blank(other).join(answered)


def _blank(language: Language) -> str:
    """What parts sentences."""
    return " " if language.spaced else ""


def _explanation(random: Random, names: DocumentNames) -> tuple[str, str]:
    """About a thing that may not exist; the words vary, the grammar is set."""
    thing, other = names.item().lower(), names.item().lower()
    material, second = random.sample(of_world(MATERIALS, names.held_out), 2)
    place, elsewhere = random.sample(of_world(PLACES, names.held_out), 2)
    use, also = random.sample(of_world(USES, names.held_out), 2)
    good, better = random.sample(TRAITS, 2)
    sentences = [
        f"A {thing} is made of {material} and is found in {place}, where it is used to {use}.",
        f"Its parts are often joined with {second}, so that it is {good} but may {random.choice(FLAWS)}.",
        f"In {elsewhere} people also use it to {also}.",
        f"Compared with a {other} it is {better}, yet a {other} does not {random.choice(FLAWS)}.",
        f"It lasts longest if it is {random.choice(CARE)} and {random.choice(CARE)}.",
        f"The first one in {names.city()} is said to have been built by {names.person()}.",
    ]
    kept = [sentences[0], *random.sample(sentences[1:], random.randint(2, 5))]
    return random.choice(EXPLAIN).format(thing), " ".join(kept)


def _list(random: Random, names: DocumentNames) -> tuple[str, str]:
    items = names.items(random.randint(4, 12))
    orders = {
        "alphabetically": sorted(items),
        "in reverse order": items[::-1],
        "the shortest first": sorted(items, key=lambda item: (len(item), item)),
    }
    order, done = random.choice(list(orders.items()))
    lines = [f"{number}. {item}" for number, item in enumerate(done, 1)]
    return f"Write these as a numbered list, {order}: {', '.join(items)}", "\n".join(lines)


def _summary(random: Random, names: DocumentNames) -> tuple[str, str]:
    source = NameSource(random, names.held_out)
    series = draw_series(random, source, random.randint(1, 3), random.randint(3, 8))
    question = f"{random.choice(SUMMARY)}\n\n{transcript(random, series)}"
    lines = [f"{series.title}: the table goes by {series.axis}, {len(series.categories)} in all."]
    for name, unit, values in zip(series.names, series.units, series.values, strict=True):
        high, low = (series.categories[values.index(extreme(values))] for extreme in (max, min))
        lines.append(
            f"{name} is highest for {high} with {series.show(max(values))} {unit} and lowest for {low} with "
            f"{series.show(min(values))}; all together come to {series.show(sum(values))}."
        )
    return question, " ".join(lines)


MAKERS = (_letter, _letter, _translation, _translation, _explanation, _list, _summary)
