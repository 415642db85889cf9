"""Draws boxes with numbers and labels on a copy of an image, and knows such a copy again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageColor, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ernie_local.files import open_plain
from ernie_local.media.image_view import ViewBox

# Okabe and Ito, without black: eight colours less one that people with any colour blindness tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
_SIDE_OF_LINE, _SIDE_OF_TEXT = 500, 50  # pixels of the longer side for one pixel of each
_LEAST_LINE, _LEAST_TEXT = 2, 12
_MOST_LABEL_CHARACTERS = 40
_NO_GLYPH = "\uffff"  # is no character, so that every font draws its sign for a missing one
_SOFTWARE = "ernie-local, boxes drawn on a copy"  # as the file says of itself, near its beginning
_HEAD_BYTES = 256
_BRIGHT = 140  # luma of 255 above which black is easier to read than white

_Corners: TypeAlias = tuple[float, float, float, float]


class DrawnBox(NamedTuple):
    """place: (left, top, right, bottom) in pixels of the image. number, label: what is written at it."""

    place: ViewBox
    number: int
    label: str | None = None


def draw_boxes(image: Image.Image, boxes: Sequence[DrawnBox]) -> Image.Image:
    """A copy of an RGB image with the boxes, line and letters as large as the image asks for.

    Of a label in letters that the font (DejaVu Sans) lacks, such as Chinese ones, only the number is drawn.
    """
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    longer = max(copy.size)
    line = max(_LEAST_LINE, round(longer / _SIDE_OF_LINE))
    font = load_label_font(max(_LEAST_TEXT, round(longer / _SIDE_OF_TEXT)))
    for box in boxes:
        left, top, right, bottom = box.place
        frame = (left, top, max(left, right - 1), max(top, bottom - 1))  # Pillow draws the last pixel too
        edge = max(1, line // 2)
        outer = (frame[0] - edge, frame[1] - edge, frame[2] + edge, frame[3] + edge)
        # A dark edge keeps the light colours visible on paper.
        draw.rectangle(outer, outline="black", width=edge)
        draw.rectangle(frame, outline=_colour(box), width=line)
    taken: list[_Corners] = []
    for box in boxes:
        _write_label(draw, box, font, line, taken)
    return copy


def save_drawing(drawing: Image.Image, path: Path) -> None:
    """Write a drawing as PNG, so that `is_drawing` knows it; OSError where it cannot be written."""
    information = PngInfo()
    information.add_text("Software", _SOFTWARE)
    drawing.save(path, "PNG", pnginfo=information)


def is_drawing(path: Path) -> bool:
    """Whether `save_drawing` wrote this file; False for one that cannot be read."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with open_plain(path) as file:
            return _SOFTWARE.encode() in (file.read(_HEAD_BYTES) or b"")
    except OSError:
        return False


def _write_label(
    draw: ImageDraw.ImageDraw,
    box: DrawnBox,
    font: ImageFont.FreeTypeFont,
    line: int,
    taken: list[_Corners],
) -> None:
    """taken: where labels stand already; this one is added."""
    text = _label_text(box, font)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4 * line, bottom - top + 4 * line
    limit_x, limit_y = draw.im.size
    x = max(0.0, min(box.place[0] - line, limit_x - width))
    places = [box.place[1] - height, box.place[3], box.place[1]]
    places += [box.place[1] + step * height for step in range(1, 8)]
    tried = [(x, y, x + width, y + height) for y in places if 0 <= y <= limit_y - height]
    free = [place for place in tried if not any(_overlap(place, other) for other in taken)]
    at = (free or tried or [(x, 0.0, x + width, height)])[0]
    taken.append(at)
    colour = _colour(box)
    draw.rectangle(at, fill=colour, outline="black")
    red, green, blue = ImageColor.getrgb(colour)[:3]
    is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > _BRIGHT
    where = (at[0] + 2 * line - left, at[1] + 2 * line - top)
    draw.text(where, text, font=font, fill="black" if is_bright else "white")


def _label_text(box: DrawnBox, font: ImageFont.FreeTypeFont) -> str:
    label = "".join(letter if letter.isprintable() else " " for letter in box.label or "")
    if len(label) > _MOST_LABEL_CHARACTERS:
        label = label[: _MOST_LABEL_CHARACTERS - 3] + "..."
    missing = bytes(font.getmask(_NO_GLYPH))
    if any(bytes(font.getmask(letter)) == missing for letter in set(label) if not letter.isspace()):
        label = ""
    return f"{box.number} {label}".rstrip()


@lru_cache(maxsize=8)
def load_label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along; not by importing it, which takes 0.2 s."""
    found = find_spec("matplotlib")
    assert found is not None, "matplotlib is a dependency"
    assert found.origin is not None
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _colour(box: DrawnBox) -> str:
    return _COLOURS[(box.number - 1) % len(_COLOURS)]


def _overlap(one: _Corners, other: _Corners) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
