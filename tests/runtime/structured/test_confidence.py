"""Confidence: which tokens count for which value, against a walk over the parsed JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ernie_local.structured import AnswerForm
from ernie_local.structured.confidence import Choice, find_confidence

ANY = AnswerForm.of({"type": "object"})
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-999, 999), st.text('aé😀"\\,]}', max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b c", "é", "x.y", "", "k-1"]), inner, max_size=3),
    ),
    max_leaves=12,
)


def leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, one in value.items():
            plain = name.replace("-", "").isalnum()
            step = (f".{name}" if path else name) if plain else f"[{json.dumps(name, ensure_ascii=False)}]"
            yield from leaves(one, path + step)
    elif isinstance(value, list) and value:
        for index, one in enumerate(value):
            yield from leaves(one, f"{path}[{index}]")
    else:
        yield path


@given(_values, st.randoms(use_true_random=False))
def test_every_value_gets_the_product_of_its_tokens(value: Any, random: Any) -> None:
    """Each byte is a token of its own, unsure by the power of its place."""
    text = json.dumps(value, ensure_ascii=False)
    shares = [random.uniform(0.5, 1) for _ in text.encode()]
    choices = [Choice(place, place + 1, share, 1.0) for place, share in enumerate(shares)]
    found = find_confidence(ANY, text, choices)
    assert list(found) == list(leaves(value, ""))
    # The letters of the values are those that are not of the structure.
    letters = sum(-math.log(share) for share in found.values())
    assert letters <= sum(-math.log(share) for share in shares) + 1e-9
    sure = find_confidence(ANY, text, [Choice(c.start, c.stop, 1.0, 1.0) for c in choices])
    assert set(sure.values()) <= {1.0}


def test_tokens_that_reach_over_a_value_count_and_the_end_of_a_number_too() -> None:
    text = '{"a": 12, "b": "xy", "c": [1.5, null], "d": []}'
    parts = [
        '{"a": ',
        "1",
        "2",
        ", ",
        '"b": "x',
        'y", ',
        '"c": [',
        "1.5",
        ", n",
        "ull",
        "], ",
        '"d": ',
        "[]",
        "}",
    ]
    shares = [0.99, 0.9, 0.8, 0.98, 0.7, 0.6, 0.97, 0.95, 0.5, 1.0, 0.96, 0.94, 0.4, 1.0]
    endings = dict.fromkeys(range(len(parts)), 1.0) | {3: 0.3, 8: 0.2}
    choices, start = [], 0
    for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
        choices.append(Choice(start, start + len(part), share, endings[index]))
        start += len(part)
    assert "".join(parts) == text
    found = find_confidence(ANY, text, choices)
    expected = {"a": 0.9 * 0.8 * 0.3, "b": 0.7 * 0.6, "c[0]": 0.95 * 0.2, "c[1]": 0.5, "d": 0.4}
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[path], share) for path, share in expected.items())


def test_a_number_alone_ends_with_the_answer() -> None:
    form = AnswerForm.of({"type": "number"})
    assert find_confidence(form, "7", [Choice(0, 1, 0.5, 0.9), Choice(1, 1, 0.8, 0.75)]) == {"": 0.5 * 0.75}
    assert find_confidence(
        AnswerForm.from_regex("a*"), "a", [Choice(0, 1, 0.5, 1), Choice(1, 1, 0.8, 1)]
    ) == {"": 0.4}


def test_a_value_as_deep_as_the_answer_is_long() -> None:
    text = "[" * 5000 + "1" + "]" * 5000
    choices = [
        Choice(place, place + 1, 0.5 if letter == "1" else 1, 1.0) for place, letter in enumerate(text)
    ]
    assert list(find_confidence(ANY, text, choices).values()) == [0.5]
