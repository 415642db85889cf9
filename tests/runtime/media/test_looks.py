"""What a user is told of images that are tiny, blank, on their side, or of small text."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ernie_calibration import charts, documents
from ernie_calibration.scan import noise
from ernie_local.media import text_direction
from ernie_local.media.looks import notes_on_looks
from tests.draws import rest_slow

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


@pytest.mark.parametrize("font_pixels", rest_slow([12, 60, 16, 30, 44], 2))
def test_a_page_on_its_side_is_noted(font_pixels: int) -> None:
    upright = page(font_pixels)
    assert notes_on_looks(upright, 1.0) == ()
    for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270):
        (note,) = notes_on_looks(upright.transpose(turn), 1.0)
        assert "turn the image by 90 degrees" in note
        assert "turn the image" in notes_on_looks(noise(Random(1), upright.transpose(turn)), 1.0)[0]
        askew = upright.transpose(turn).rotate(2, Image.Resampling.BICUBIC, fillcolor="white")
        assert "turn the image" in notes_on_looks(askew, 1.0)[0]
    assert notes_on_looks(upright.rotate(2, Image.Resampling.BICUBIC, fillcolor="white"), 1.0) == ()


@pytest.mark.parametrize("kind", documents.KINDS)
def test_documents_on_their_side_are_noted(kind: str) -> None:
    noted = [
        any("turn the image" in note for note in notes_on_looks(image.transpose(turn), 1.0))
        for image in (documents.draw_document(kind, seed).image for seed in (3,))
        for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
    ]
    assert noted == [True] * 2


def drawn_bars(tallest: int) -> Image.Image:
    """Many upright bars: a code, a fence, or, where they are short, dashes."""
    image, random = Image.new("RGB", (1000, 1000), "white"), Random(0)
    draw = ImageDraw.Draw(image)
    for left in range(50, 950, 12):
        for top in range(50, 950, tallest + 10):
            draw.rectangle((left, top, left + 4, top + random.randint(tallest // 3, tallest)), fill="black")
    return image


@pytest.mark.parametrize("tallest", [20, 30, 60, 110, 300, 800])
def test_what_is_no_text_is_not_on_its_side(tallest: int) -> None:
    assert notes_on_looks(drawn_bars(tallest), 1.0) == ()


def test_connected_ink_is_found_as_by_filling_it_pixel_by_pixel() -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random((30, 40)) < 0.2 + 0.02 * seed
        shapes = text_direction._find_shapes(text_direction._find_runs(mask))
        expected = []
        left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
        while left:
            found, waiting = set(), [left.pop()]
            while waiting:
                row, column = waiting.pop()
                found.add((row, column))
                near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & left
                left -= near
                waiting.extend(near)
            rows, columns = zip(*found, strict=True)
            expected.append((max(columns) - min(columns) + 1, max(rows) - min(rows) + 1))
        sizes = zip(shapes.widths.tolist(), shapes.heights.tolist(), strict=True)
        assert sorted(sizes) == sorted(expected)


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


@pytest.mark.parametrize("seed", rest_slow(range(2), 1))
def test_documents_and_charts_as_they_are_made_get_no_note(seed: int) -> None:
    told = [
        (kind, notes)
        for draw, kinds in ((documents.draw_document, documents.KINDS), (charts.draw_chart, charts.KINDS))
        for kind in kinds
        if (notes := notes_on_looks(draw(kind, seed).image, 1.0))
    ]
    assert told == []
