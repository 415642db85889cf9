"""Records as lines of JSON: what is written is read again, whatever the names and values."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ernie_local.errors import InputUnreadable
from ernie_local.extraction.record import Record, RecordError, parse_record

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PATHS = st.text(
    st.characters(exclude_categories=()), max_size=8
)  # lone surrogates too: names that are no UTF-8
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
COUNTS = st.integers(0, 1 << 20)
RECORDS = st.builds(
    Record,
    file=PATHS,
    page=st.none() | st.integers(1, 999),
    fields=st.none() | st.dictionaries(TEXT, VALUES, max_size=4),
    confidence=st.dictionaries(TEXT, st.floats(0, 1), max_size=3),
    boxes=st.dictionaries(TEXT, st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), max_size=3),
    review=st.lists(TEXT, max_size=3).map(tuple),
    failed_checks=st.lists(TEXT, max_size=3).map(tuple),
    notes=st.lists(TEXT, max_size=3).map(tuple),
    seconds=st.floats(0, 1e6),
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    error=st.none() | st.builds(RecordError, kind=TEXT, what=TEXT, why=TEXT, hint=TEXT),
)


@given(RECORDS)
@example(Record("no UTF-8 \udcff.png", fields={"größe": "é"}))
def test_a_line_holds_the_whole_record(record: Record) -> None:
    line = record.to_json()
    assert not {"\n", "\r"} & set(line)
    assert parse_record(line.encode("utf-8").decode(), "line 1") == record
    assert list(json.loads(line)) == [each.name for each in fields(Record)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"file": "a.png"}',
        Record("a.png", fields={"x": 1}).to_json()[:-1],
        Record("a.png").to_json().replace('"a.png"', "7"),
        Record("a.png").to_json().replace('"boxes": {}', '"boxes": {"x": [1]}'),
        Record("a.png").to_json().replace('"error": null', '"error": {"kind": "x"}'),
    ],
)
def test_other_lines_are_refused_by_name(line: str) -> None:
    with pytest.raises(InputUnreadable, match=r"line 3 of x\.jsonl is not a record"):
        parse_record(line, "line 3 of x.jsonl")
