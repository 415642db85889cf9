"""Asks for the place of each field beside its value, and takes the places out of the answer again.

A field of the schema becomes `{"value": ..., "bbox_2d": [left, top, right, bottom]}` in thousandths of the
image. That is how the published model was taught to point: `bbox_2d` is the key of its zoom tool, and asked
for values with places, it wrote both in one object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ernie_local.errors import UsageError, parameter
from ernie_local.extraction.record import Record
from ernie_local.file_names import leads_below
from ernie_local.files import shared_file
from ernie_local.media.draw_boxes import DrawnBox, draw_boxes, is_drawing, save_drawing
from ernie_local.media.image_view import CropBox, ImageView
from ernie_local.media.open_image import OpenedImage
from ernie_local.structured.confidence import named
from ernie_local.text.boxes import read_box

VALUE_KEY, BOX_KEY = "value", "bbox_2d"
BOX_INSTRUCTION = (
    f"{BOX_KEY} is where the value stands in the image, as [left, top, right, bottom] in thousandths of its "
    "width and height; null where it stands nowhere."
)
# The ends of paths: of a value that has a box, and of the box or a side of it. An empty list has no box.
_PAIRED_VALUE = re.compile(rf"(^|\.){VALUE_KEY}$")
_IN_BOX = re.compile(rf"(^|\.){BOX_KEY}(\[\d\])?$")
_SIDE = {"type": "integer", "minimum": 0, "maximum": 1000}
_BOX = {"anyOf": [{"type": "array", "items": _SIDE, "minItems": 4, "maxItems": 4}, {"type": "null"}]}
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")


class SplitAnswer(NamedTuple):
    """An answer without its boxes.

    boxes: by the path of their value, in pixels of the stored original, as of `Record.boxes`. notes: what was
    no box, or was cut at the edge of the image.
    """

    fields: Any
    boxes: dict[str, CropBox]
    notes: tuple[str, ...]


def schema_with_boxes(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the same answer with a box beside each value that holds no others.

    UsageError for a schema that has such pairs of `value` and `bbox_2d` already.
    """
    return _object_with_boxes(schema, "$")


def split_boxes(value: Any, view: ImageView) -> SplitAnswer:
    """Take the boxes out of an answer to a schema of `schema_with_boxes`. view: of the image asked about."""
    boxes: dict[str, CropBox] = {}
    notes: list[str] = []

    def split(one: Any, path: str) -> Any:
        if isinstance(one, list):
            return [split(each, f"{path}[{index}]") for index, each in enumerate(one)]
        if not isinstance(one, dict):
            return one
        if set(one) != {VALUE_KEY, BOX_KEY}:
            return {name: split(each, named(path, name)) for name, each in one.items()}
        if one[BOX_KEY] is not None:
            place, problem = read_box(one[BOX_KEY])
            if problem is not None:
                notes.append(f"{path}: {problem}")
            if place is not None:
                boxes[path] = _whole_pixels(view, view.box_to_original(place))
        return one[VALUE_KEY]

    return SplitAnswer(split(value, ""), boxes, tuple(notes))


def split_confidence(confidence: Mapping[str, float]) -> dict[str, float]:
    """The confidence of the values alone, under the paths that they have without boxes."""
    return {
        _PAIRED_VALUE.sub("", path): share for path, share in confidence.items() if not _IN_BOX.search(path)
    }


def drawing_of(folder: Path, record: Record) -> Path:
    """Where the drawing of a record belongs: `folder`/scan.pdf-3.png for page 3 of scan.pdf.

    UsageError for a record whose file lies outside of the folder that was read.
    """
    page = "" if record.page is None else f"-{record.page}"
    if not leads_below(record.file):
        raise UsageError(
            f"the file {record.file!r} of a record lies outside of its folder",
            "a drawing of it would be written outside of the folder for drawings",
            "check where the records come from",
        )
    return folder / f"{record.file}{page}.png"


def make_place(path: Path) -> None:
    """Make the folder of a drawing; UsageError where a file lies at `path` that is no drawing."""
    if path.exists() and not is_drawing(path):
        raise UsageError(
            f"will not draw over {path}",
            "that file is no drawing of an earlier run",
            f"another folder for {parameter('draw')}, or move the file away",
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def draw_record(record: Record, image: OpenedImage, folder: Path) -> Path | None:
    """Draw the boxes of a record on a copy of its image, named by their paths; the file, None without boxes.

    Folders are made as needed. ErnieLocalError where the file cannot be written, and UsageError where the
    image itself lies there, or another file that is no drawing.
    """
    path = drawing_of(folder, record)
    if not record.boxes:
        return None
    if path.exists() and Path(image.name).exists() and path.samefile(image.name):
        raise UsageError(
            f"will not draw over {path}",
            "it is the document itself",
            f"another folder for {parameter('draw')}",
        )
    view = image.view
    drawn = [
        DrawnBox(view.opened.box_to_original(view.box_from_original(box)), number, name)
        for number, (name, box) in enumerate(record.boxes.items(), start=1)
    ]
    make_place(path)
    with shared_file(path, "a drawing") as new:
        save_drawing(draw_boxes(image.image, drawn), new)
    return path


def _whole_pixels(view: ImageView, box: tuple[float, float, float, float]) -> CropBox:
    """The whole pixels that a box touches, within the original."""
    width, height = (math.ceil(side) for side in view.original_size)
    left, top = (math.floor(side + 1e-6) for side in box[:2])
    right, bottom = (math.ceil(side - 1e-6) for side in box[2:])
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def _with_boxes(schema: Any, place: str) -> Any:
    if not isinstance(schema, dict):
        return _pair(schema)
    if "$ref" in schema:
        return schema  # what it leads to gets the boxes
    if _is_null(schema):
        return schema
    if "enum" not in schema and "const" not in schema and _holds_others(schema):
        return _object_with_boxes(schema, place)
    return _pair(schema)


def _object_with_boxes(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    changed = dict(schema)
    if set(schema.get("properties", ())) == {VALUE_KEY, BOX_KEY}:
        raise UsageError(
            f"{parameter('boxes', True)} with the fields {VALUE_KEY} and {BOX_KEY} at {place}",
            "that is how an answer pairs a value with its box, so that the two could not be told apart",
            f"another name for {VALUE_KEY}, or no {parameter('boxes')}",
        )
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        if key in schema:
            changed[key] = {
                name: _with_boxes(one, f"{place}.{key}.{name}") for name, one in schema[key].items()
            }
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            changed[key] = _with_boxes(schema[key], f"{place}.{key}")
    for key in ("prefixItems", *_ALTERNATIVES):
        if key in schema:
            changed[key] = [
                _with_boxes(one, f"{place}.{key}[{index}]") for index, one in enumerate(schema[key])
            ]
    return changed


def _holds_others(schema: Mapping[str, Any]) -> bool:
    """Whether values of a schema hold other values, or may do so."""
    kinds = schema.get("type", [])
    if {"object", "array"} & set(kinds if isinstance(kinds, list) else [kinds]):
        return True
    if any(key in schema for key in ("properties", "patternProperties", "items", "prefixItems")):
        return True
    alternatives = [one for key in _ALTERNATIVES for one in schema.get(key, ())]
    return any(isinstance(one, dict) and ("$ref" in one or _holds_others(one)) for one in alternatives)


def _is_null(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "null"


def _pair(schema: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {VALUE_KEY: schema, BOX_KEY: _BOX},
        "required": [VALUE_KEY, BOX_KEY],
        "additionalProperties": False,
    }
