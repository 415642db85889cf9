"""Boxes beside fields: the schema that asks for them, taking them out again, and drawing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image

from ernie_local.errors import UsageError
from ernie_local.extraction.boxes import (
    draw_record,
    drawing_of,
    schema_with_boxes,
    split_boxes,
    split_confidence,
)
from ernie_local.extraction.paths import leaves
from ernie_local.extraction.record import Record
from ernie_local.media.image_view import ImageView
from ernie_local.media.open_image import open_images

NAMES = st.sampled_from(["total", "item", "value", "bbox_2d", "größe", "two words", 'quo"te', "a-b"])
LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
WHOLE = ImageView.whole((1000, 1000))


def schema_of(value: Any) -> dict[str, Any]:
    """One that fits the value: each item of a list as its place says."""
    if isinstance(value, dict):
        properties = {name: schema_of(one) for name, one in value.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(value),
            "additionalProperties": False,
        }
    if isinstance(value, list):
        return {"type": "array", "prefixItems": [schema_of(one) for one in value], "items": False}
    return {"type": ["string", "null", "integer", "boolean"]}


def with_places(value: Any, places: list[list[int]]) -> Any:
    """As a model would answer; each place is remembered."""
    if isinstance(value, dict):
        return {name: with_places(one, places) for name, one in value.items()}
    if isinstance(value, list):
        return [with_places(one, places) for one in value]
    number = 10 * len(places)
    places.append([number, number + 1, number + 2, number + 3])
    return {"value": value, "bbox_2d": places[-1]}


def has_pair(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, dict) and set(value) == {"value", "bbox_2d"}) or any(map(has_pair, inside))


@settings(max_examples=40)
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
def test_what_is_asked_for_and_taken_out_is_the_answer(value: dict[str, Any]) -> None:
    schema = schema_of(value)
    if has_pair(value):
        with pytest.raises(UsageError, match="could not be told apart"):
            schema_with_boxes(schema)
        return
    places: list[list[int]] = []
    answer = with_places(value, places)
    before = json.dumps(schema)
    Draft202012Validator(schema_with_boxes(schema)).validate(answer)
    assert json.dumps(schema) == before
    found = split_boxes(answer, WHOLE)
    assert found.fields == value
    assert found.notes == ()
    paths = [path for path, one in leaves(value) if one not in ({}, [])]
    assert [(path, list(box)) for path, box in found.boxes.items()] == list(zip(paths, places, strict=True))
    shares = {f"{path}.value": 0.5 for path in paths} | {f"{path}.bbox_2d[0]": 0.1 for path in paths}
    assert split_confidence(shares) == dict.fromkeys(paths, 0.5)


def test_empty_lists_and_objects_keep_their_confidence() -> None:
    shares = {"lines": 0.3, "total.value": 0.9, "total.bbox_2d[0]": 0.1, "other.bbox_2d": 0.2, "a[0].b": 0.4}
    assert split_confidence(shares) == {"lines": 0.3, "total": 0.9, "a[0].b": 0.4}


def test_alternatives_references_and_enums() -> None:
    line = {"type": "object", "properties": {"price": {"$ref": "#/$defs/Money"}}, "required": ["price"]}
    schema = {
        "type": "object",
        "$defs": {"Line": line, "Money": {"type": "number", "description": "in euros"}},
        "properties": {
            "kind": {"enum": ["bill", "offer"]},
            "due": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}, "minItems": 1},
            "discount": {"anyOf": [{"$ref": "#/$defs/Money"}, {"type": "null"}]},
            "none": {"type": "null"},
        },
    }
    changed = schema_with_boxes(schema)
    box = [1, 2, 3, 4]
    answer = {
        "kind": {"value": "bill", "bbox_2d": None},
        "due": {"value": None, "bbox_2d": None},
        "lines": [{"price": {"value": 1.5, "bbox_2d": box}}],
        "discount": None,
        "none": None,
    }
    Draft202012Validator.check_schema(changed)
    Draft202012Validator(changed).validate(answer)
    for wrong in ([1, 2, 3], [1, 2, 3, 4, 5], [-1, 2, 3, 4], [1, 2, 3, 1001]):
        answer["kind"] = {"value": "bill", "bbox_2d": wrong}
        assert not Draft202012Validator(changed).is_valid(answer)
    answer["kind"] = "bill"
    assert not Draft202012Validator(changed).is_valid(answer)
    found = split_boxes(answer, WHOLE)
    assert found.fields == {
        "kind": "bill",
        "due": None,
        "lines": [{"price": 1.5}],
        "discount": None,
        "none": None,
    }
    assert found.boxes == {"lines[0].price": (1, 2, 3, 4)}


def test_wrong_places_are_told_and_left_out() -> None:
    pairs = {
        name: {"value": 1, "bbox_2d": box} for name, box in (("a", [5, 5, 5, 9]), ("b", [900, 40, 100, 20]))
    }
    found = split_boxes(pairs, WHOLE)
    assert (found.fields, found.boxes) == ({"a": 1, "b": 1}, {"b": (100, 20, 900, 40)})
    assert found.notes == ("a: [5, 5, 5, 9] has no area",)


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 3000), st.integers(1, 3000), st.data())
def test_boxes_lie_within_the_stored_pixels(turn: int, width: int, height: int, data: st.DataObject) -> None:
    view = ImageView.whole((width, height), orientation=turn)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    view = view.cropped((left, top, right, bottom)).resized((56, 84))
    stored = view.box_to_original((0, 0, 1000, 1000))
    found = split_boxes({"all": {"value": 1, "bbox_2d": [0, 0, 1000, 1000]}}, view)
    # The whole of a cut in whole pixels is exactly these pixels.
    assert found.boxes["all"] == tuple(round(side) for side in stored)
    assert all(isinstance(side, int) for side in found.boxes["all"])


def test_a_record_is_drawn_where_its_values_stand(tmp_path: Path) -> None:
    path = tmp_path / "in" / "scan.png"
    path.parent.mkdir()
    image = Image.new("RGB", (300, 200), "white")
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(path, exif=exif)
    (opened,) = open_images(path)
    record = Record("sub/scan.png", 2, {"total": 1}, boxes={"total": (40, 60, 140, 100)})
    drawn = draw_record(record, opened, tmp_path / "out")
    assert drawn == tmp_path / "out" / "sub" / "scan.png-2.png"
    with Image.open(drawn) as again:
        assert again.size == (200, 300)
        rows, columns = np.nonzero((np.asarray(again) == (0, 114, 178)).all(axis=2))
    corners = opened.view.upright.box_to_original(opened.view.box_from_original((40, 60, 140, 100)))
    columns = columns[rows >= corners[1] + 2]  # below the label
    assert (columns.max() + 1, rows.max() + 1) == pytest.approx(corners[2:], abs=1)
    assert columns.min() == pytest.approx(corners[0], abs=1)
    assert draw_record(Record("a.png"), opened, tmp_path / "out") is None


def test_no_drawing_goes_outside_of_its_folder_or_over_the_document(tmp_path: Path) -> None:
    for name in ("../a.png", "/etc/a.png", "a/../../b.png"):
        with pytest.raises(UsageError, match="outside of its folder"):
            drawing_of(tmp_path, Record(name))
    assert drawing_of(tmp_path, Record("a.png", 12)) == tmp_path / "a.png-12.png"
    path = tmp_path / "a.png"
    Image.new("RGB", (50, 50)).save(path)
    path.rename(tmp_path / "a.png.png")
    (opened,) = open_images(tmp_path / "a.png.png")
    with pytest.raises(UsageError, match="the document itself"):
        draw_record(Record("a.png", boxes={"x": (1, 1, 20, 20)}), opened, tmp_path)


def test_a_file_of_the_user_is_not_drawn_over(tmp_path: Path) -> None:
    page, theirs = tmp_path / "a.png", tmp_path / "a.png.png"
    for path in (page, theirs):
        Image.new("RGB", (50, 50), "white").save(path)
    (opened,) = open_images(page)
    record = Record("a.png", boxes={"x": (1, 1, 20, 20)})
    before = theirs.read_bytes()
    with pytest.raises(UsageError, match=r"will not draw over .*a\.png\.png") as raised:
        draw_record(record, opened, tmp_path)
    assert raised.value.why == "that file is no drawing of an earlier run"
    assert theirs.read_bytes() == before
    theirs.unlink()
    for _ in range(2):  # an earlier drawing makes way
        assert draw_record(record, opened, tmp_path) == theirs
