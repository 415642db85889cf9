"""What a user is told of images that are tiny, blank, on their side, or of small text."""

from __future__ import annotations

from random import Random

import pytest
from PIL import Image, ImageDraw, ImageFont

from ernie_calibration import charts, documents
from ernie_calibration.scan import noise
from ernie_local.media.looks import notes_on_looks

WORDS = (
    "invoice total amount payable Quantity price the of and Tax 12.50 items street Berlin due date".split()
)


def page(font_pixels: int, size: tuple[int, int] = (1240, 1754)) -> Image.Image:
    """A page full of lines of words."""
    image = Image.new("L", size, 255)
    draw, font, random = ImageDraw.Draw(image), ImageFont.load_default(font_pixels), Random(0)
    for top in range(size[1] // 10, size[1] * 9 // 10, font_pixels * 3 // 2):
        line = " ".join(random.choices(WORDS, k=size[0] // font_pixels // 4))
        draw.text((size[0] // 10, top), line, 0, font)
    return image.convert("RGB")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (27, 27), (20, 30)])
def test_an_image_smaller_than_a_square_is_noted(width: int, height: int) -> None:
    (note,) = notes_on_looks(page(20).resize((width, height)), 28.0)
    assert f"only {width} x {height} pixels" in note


@pytest.mark.parametrize("colour", ["white", "black", "#c8b090"])
def test_a_blank_page_is_noted_although_the_scanner_adds_noise(colour: str) -> None:
    blank = Image.new("RGB", (1240, 1754), colour)
    assert [note[:5] for note in notes_on_looks(blank, 1.0)] == ["blank"]
    assert [note[:5] for note in notes_on_looks(noise(Random(0), blank), 1.0)] == ["blank"]
    ImageDraw.Draw(blank).text((600, 800), "7", "red", ImageFont.load_default(40))
    assert notes_on_looks(blank, 1.0) == ()


@pytest.mark.parametrize("turn", [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270])
@pytest.mark.parametrize("font_pixels", [12, 16])
def test_a_page_on_its_side_is_noted(font_pixels: int, turn: Image.Transpose) -> None:
    upright = page(font_pixels)
    assert notes_on_looks(upright, 1.0) == ()
    (note,) = notes_on_looks(upright.transpose(turn), 1.0)
    assert "turn the image by 90 degrees" in note
    assert "turn the image" in notes_on_looks(noise(Random(1), upright.transpose(turn)), 1.0)[0]


@pytest.mark.parametrize("font_pixels", [12, 20, 32])
@pytest.mark.parametrize("size", [(1240, 1754), (2480, 3508), (690, 9000)])
def test_text_that_becomes_small_is_noted(font_pixels: int, size: tuple[int, int]) -> None:
    image = page(font_pixels, size)
    assert not any("hard to read" in note for note in notes_on_looks(image, 11 / font_pixels))
    note = notes_on_looks(image, 5 / font_pixels)[0]
    assert "hard to read under 8" in note
    assert "slices" in note


def test_slices_are_offered_for_a_long_receipt() -> None:
    (note,) = notes_on_looks(page(30, (690, 15420)), 0.67)
    assert "cut into 3 slices" in note
    assert "-crop 690x5140" in note
    assert notes_on_looks(page(30, (690, 2000)), 1.0) == ()


def test_documents_and_charts_as_they_are_made_get_no_note() -> None:
    told = [
        (kind, seed, notes)
        for draw, kinds in ((documents.draw_document, documents.KINDS), (charts.draw_chart, charts.KINDS))
        for kind in kinds
        for seed in range(2)
        if (notes := notes_on_looks(draw(kind, seed).image, 1.0))
    ]
    assert told == []
