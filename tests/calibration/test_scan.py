"""Wear: the same by the same seed, every kind changes a page, and none makes it illegible."""

from __future__ import annotations

from random import Random

import numpy
import pytest
from PIL import Image

from ernie_calibration.documents import draw_document
from ernie_calibration.scan import WEARS, Wear, rotation, shadow, worn


@pytest.fixture(scope="module")
def page() -> Image.Image:
    return draw_document("letter page", 2).image


def gray(image: Image.Image) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]:
    return numpy.asarray(image.convert("L"), dtype=numpy.float64)


@pytest.mark.parametrize("wear", WEARS)
def test_every_wear_is_decided_by_the_seed_and_changes_the_page(wear: Wear, page: Image.Image) -> None:
    drawn = [wear(Random(seed), page) for seed in (1, 1, 2)]
    assert all((image.size, image.mode) == (page.size, "RGB") for image in drawn)
    assert drawn[0].tobytes() == drawn[1].tobytes()
    assert len({image.tobytes() for image in (page, drawn[0], drawn[2])}) == 3


@pytest.mark.parametrize("seed", range(8))
def test_ink_stays_darker_than_the_paper_around_it(seed: int, page: Image.Image) -> None:
    image = worn(Random(seed), page)
    assert image.tobytes() == worn(Random(seed), page).tobytes()
    values = gray(image)
    dark = numpy.percentile(values, 1.0)
    assert numpy.median(values) - dark > 40


def test_shadows_fall_on_square_images_too() -> None:
    square = Image.new("RGB", (64, 64), "white")
    falls = [gray(shadow(Random(seed), square)) for seed in range(12)]
    # Along one side the light changes, across it it does not.
    sides = {bool(numpy.ptp(light, 0).max() == 0) for light in falls}
    assert len(sides) == 2
    assert all(numpy.ptp(light, 0).max() == 0 or numpy.ptp(light, 1).max() == 0 for light in falls)


def test_no_corner_is_lost_in_turning() -> None:
    page = Image.new("RGB", (300, 200), "white")
    for corner in ((2, 2), (295, 2), (2, 195), (295, 195)):
        page.paste("black", (*corner, corner[0] + 3, corner[1] + 3))
    for seed in range(6):
        turned = gray(rotation(Random(seed), page))
        quarters = (turned[:100, :150], turned[:100, 150:], turned[100:, :150], turned[100:, 150:])
        assert all(quarter.min() < 150 for quarter in quarters)
