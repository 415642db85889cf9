"""Texts: sums come out right, programs run, translations say the same, both worlds stay apart."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from random import Random

import pytest

from ernie_calibration.documents.language import CODES, load_language
from ernie_calibration.documents.names import DocumentNames
from ernie_calibration.names import of_world
from ernie_calibration.sample import SampleTurn
from ernie_calibration.texts import exercises, make_texts, prose

Maker = Callable[[Random, DocumentNames], tuple[str, str]]


def drawn(maker: Maker, count: int = 20, held_out: bool = False) -> list[SampleTurn]:
    """Turns with names in all languages."""
    turns = []
    for seed in range(count):
        random = Random(seed)
        names = DocumentNames(random, load_language(CODES[seed % len(CODES)]), held_out)
        turns.append(SampleTurn(*maker(random, names), "text"))
    return turns


def test_texts_are_the_same_by_seed_and_vary() -> None:
    assert make_texts(5) == make_texts(5)
    assert make_texts(5) != make_texts(5, held_out=True)
    turns = [turn for seed in range(150) for turn in make_texts(seed)]
    assert {turn.kind for turn in turns} == {"text"}
    answers = [turn.answer for turn in turns]
    assert len(set(answers)) > 0.99 * len(answers)
    assert sum(map(len, answers)) / len(answers) > 150
    letters = {character for answer in answers for character in answer}
    assert {"ß", "ñ", "ż", "ж", "ω", "的"} <= letters


@pytest.mark.parametrize("maker", exercises.SUMS)
def test_every_step_of_a_sum_is_right(maker: Maker) -> None:
    for turn in drawn(maker):
        steps = re.findall(r"(?:^|[ :\n])(\d[\d.]*(?: [-+*/] \d[\d.]*)+) = ([\d.]*\d)", turn.answer)
        assert steps, turn
        for left, right in steps:
            assert _evaluated(left) == pytest.approx(float(right)), turn
        last = turn.answer.split("\n")[-1]
        assert re.search(r"\d", last), turn


def _evaluated(text: str) -> float:
    """A sum of products, or one quotient."""
    if "/" in text:
        over, under = text.split(" / ")
        return float(over) / float(under)
    total = 0.0
    for sign, term in re.findall(r"(^|[-+] )([\d.]+(?: \* [\d.]+)*)", text):
        product = 1.0
        for factor in term.split(" * "):
            product *= float(factor)
        total += -product if sign.startswith("-") else product
    return total


def test_python_answers_parse_and_orders_are_json_of_what_was_told() -> None:
    num_python = num_json = 0
    for maker in exercises.PROGRAMS:
        for turn in drawn(maker):
            code = re.search(r"```python\n(.*?)```", turn.answer, re.DOTALL)
            if code:
                ast.parse(code[1])
                num_python += 1
            elif turn.answer.startswith("{"):
                order = json.loads(turn.answer)
                assert order["name"] in turn.question
                for item in order["items"]:
                    assert f"{item['quantity']} x {item['article']} at {item['cents']} cents" in turn.question
                num_json += 1
    assert (num_python, num_json) == (40, 20)


def test_sentences_say_the_same_in_every_language() -> None:
    places = [re.findall(r"{(\w+)}", sentence) for sentence in load_language("en").sentences]
    for code in CODES:
        sentences = load_language(code).sentences
        assert [sorted(re.findall(r"{(\w+)}", sentence)) for sentence in sentences] == list(
            map(sorted, places)
        )


def test_summaries_name_the_extremes_of_their_table() -> None:
    for turn in drawn(prose._summary):
        table = turn.question.split("\n\n", 1)[1]
        for name, category, value in re.findall(r"(\w+) is highest for (\w+) with ([\d.]+)", turn.answer):
            assert name in table
            assert re.search(rf"{category}\b.*\b{re.escape(value)}\b", table)


def test_lists_keep_every_item_in_the_order_asked_for() -> None:
    for turn in drawn(prose._list):
        given = turn.question.split(": ", 1)[1].split(", ")
        listed = [line.split(". ", 1)[1] for line in turn.answer.split("\n")]
        assert sorted(given) == sorted(listed)
        if "alphabetically" in turn.question:
            assert listed == sorted(listed)
        elif "reverse" in turn.question:
            assert listed == given[::-1]
        else:
            assert [len(item) for item in listed] == sorted(map(len, listed))


def test_held_out_letters_use_sentences_of_their_own() -> None:
    english = load_language("en")
    starts = {sentence.split("{")[0][:25] for sentence in of_world(english.sentences, True)}
    for held_out in (False, True):
        text = " ".join(
            prose._letter(Random(seed), DocumentNames(Random(seed), english, held_out))[1]
            for seed in range(20)
        )
        assert all((start in text) == held_out for start in starts)
