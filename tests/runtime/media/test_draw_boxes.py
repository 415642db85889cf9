"""Boxes drawn on images: where they were asked for, visible, and nowhere over the file's own pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from ernie_local.media.draw_boxes import _COLOURS, DrawnBox, draw_boxes


def pixels_of(image: Image.Image, colour: str) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    return np.argwhere((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=2))


@settings(max_examples=30)
@given(
    st.integers(0, 150), st.integers(60, 150), st.integers(30, 150), st.integers(30, 150), st.integers(1, 9)
)
def test_the_frame_lies_on_the_edge_of_the_box(
    left: int, top: int, width: int, height: int, number: int
) -> None:
    image = Image.new("RGB", (320, 320), "white")
    drawn = draw_boxes(image, [DrawnBox((left, top, left + width, top + height), number)])
    assert image.getextrema() == ((255, 255),) * 3, "the image itself is left alone"
    frame = pixels_of(drawn, _COLOURS[(number - 1) % len(_COLOURS)])
    inside = frame[frame[:, 0] >= top]
    assert inside[:, 1].min() == left
    assert (inside.max(axis=0) == (top + height - 1, left + width - 1)).all()


def test_lines_and_letters_grow_with_the_image() -> None:
    counts = []
    for scale in (1, 4):
        image = Image.new("RGB", (1000 * scale, 800 * scale), "white")
        box = DrawnBox((100 * scale, 100 * scale, 300 * scale, 200 * scale), 1, "total")
        counts.append(len(pixels_of(draw_boxes(image, [box]), _COLOURS[0])) / scale**2)
    assert counts[1] == pytest.approx(counts[0], rel=0.25)


def test_labels_do_not_cover_each_other() -> None:
    image = Image.new("RGB", (400, 400), "white")
    boxes = [DrawnBox((50, 100, 60, 110), number, "label") for number in range(1, 5)]
    drawn = draw_boxes(image, boxes)
    for colour in _COLOURS[:4]:
        rows = pixels_of(drawn, colour)[:, 0]
        assert len(rows) > 300, "the ground of each label is there"


def test_letters_that_the_font_lacks_are_left_out() -> None:
    image = Image.new("RGB", (300, 200), "white")
    place = (50.0, 50.0, 150.0, 100.0)

    def drawn(label: str | None) -> bytes:
        return draw_boxes(image, [DrawnBox(place, 1, label)]).tobytes()

    assert drawn("合计") == drawn(None)
    assert drawn("Größe") != drawn(None)
    assert drawn("Größe") != drawn("Größte")
    assert drawn("a\x1bb\n") == drawn("a b ")


@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (4000, 3), (28, 28)])
def test_images_of_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    boxes = [DrawnBox((0, 0, *size), 1, "x" * 300), DrawnBox((0.2, 0.2, 0.4, 0.4), 2)]
    assert draw_boxes(Image.new("RGB", size), boxes).size == size


def test_colours_differ_for_people_with_any_colour_blindness() -> None:
    """By the matrices of Machado and others (2009) for a full loss of one kind of cone."""
    matrices: dict[str, list[float]] = {
        "none": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "protan": [0.152, 1.053, -0.205, 0.115, 0.786, 0.099, -0.004, -0.048, 1.052],
        "deutan": [0.367, 0.861, -0.228, 0.280, 0.673, 0.047, -0.012, 0.043, 0.969],
        "tritan": [1.256, -0.077, -0.179, -0.078, 0.931, 0.148, 0.005, 0.691, 0.304],
    }
    colours = np.array([ImageColor.getrgb(colour) for colour in _COLOURS]) / 255
    for kind, matrix in matrices.items():
        seen = np.clip(colours**2.2 @ np.reshape(matrix, (3, 3)).T, 0, 1) ** (1 / 2.2)
        for first in range(len(seen)):
            for second in range(first):
                assert np.abs(seen[first] - seen[second]).max() > 0.1, (kind, first, second)
