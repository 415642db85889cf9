"""Writes the time on a frame of a video, where and how the published code does."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ernie_local.errors import InputUnreadable

_SIZE_OF_TEXT = _SIZE_OF_OUTLINE = 0.1  # of the shorter side; of the text
_PACKAGE, _FONT_FILE = "fontpkg_roboto", "Roboto[wdth,wght].ttf"  # its default weight is Regular


def draw_stamp(frame: Image.Image, text: str) -> None:
    """Write `text` into the upper left corner of an RGB frame: black, with a white outline.

    A frame of less than 10 pixels has no room for it. InputUnreadable without the font.
    """
    size = _text_size(frame)
    if size < 1:
        return
    ImageDraw.Draw(frame).text(
        (0, 0),
        text,
        font=_load_font(size),
        fill=(0, 0, 0),
        stroke_width=int(size * _SIZE_OF_OUTLINE),
        stroke_fill=(255, 255, 255),
    )


def stamp_font(frame: Image.Image) -> ImageFont.FreeTypeFont:
    """The font of the stamp on a frame that has room for it; InputUnreadable without it."""
    return _load_font(_text_size(frame))


def check_font(name: str) -> None:
    """InputUnreadable where this installation lacks the font of the time stamps. name: of the video."""
    if importlib.util.find_spec(_PACKAGE) is None:
        raise missing_extra(name, f"the font of the time stamps is optional: no package {_PACKAGE}")


def has_extra() -> bool:
    """Whether this installation can read videos."""
    return all(importlib.util.find_spec(package) is not None for package in ("av", _PACKAGE))


def missing_extra(name: str, why: str) -> InputUnreadable:
    """The error for a video `name` where what the extra [video] installs is not there."""
    return InputUnreadable(
        f"{name}: is a video, which this installation cannot read", why, "pip install 'ernie-local[video]'"
    )


def _text_size(frame: Image.Image) -> int:
    return int(min(frame.size) * _SIZE_OF_TEXT)


@functools.lru_cache(maxsize=4)
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise missing_extra("a frame", f"the font of the time stamps is optional: no package {_PACKAGE}")
    # The files are found without importing the package, which would register fonts.
    return ImageFont.truetype(str(Path(found.origin).parent / "files" / _FONT_FILE), size)
