"""A page may say how many points its unit is."""

from __future__ import annotations

import zlib

import pytest

from ernie_local.media.open_image import open_images
from ernie_local.media.pdf_units import may_have_units
from tests.pdf_files import make_pdf, one_page, stream


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        (b"1", (100, 50)),
        (b"3", (300, 150)),
        (b"2.5", (250, 125)),
        (b".5", (50, 25)),
        (b"4 0 R", (150, 75)),
        # What is no unit.
        (b"0", (100, 50)),
        (b"-3", (100, 50)),
        (b"null", (100, 50)),
        (b"(x)", (100, 50)),
    ],
)
def test_a_page_is_as_large_as_its_unit_makes_it(unit: bytes, size: tuple[int, int]) -> None:
    (opened,) = open_images(one_page(b"0 0 100 50", b"/UserUnit " + unit, more=(b"1.5",)), pdf_dpi=72)
    assert opened.image.size == size
    assert opened.notes == ()


def test_each_page_has_its_own_and_is_turned_and_cropped_as_before() -> None:
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 50] %s >>"
    data = make_pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R 4 0 R 5 0 R] /Count 3 >>",
            page
            % b"/UserUnit 2 /Rotate 90 /Annots [<< /Subtype /Link /Rect [0 0 9 9] /Dest [5 0 R /Fit] >>]",
            page % b"",
            page % b"/UserUnit 4 /CropBox [0 0 50 50]",
        ]
    )
    sizes = [opened.image.size for opened in open_images(data, pdf_dpi=72)]
    assert sizes == [(100, 200), (100, 50), (200, 200)]


def test_a_plan_of_a_building_is_read_at_a_lower_resolution() -> None:
    (opened,) = open_images(one_page(b"0 0 14400 14400", b"/UserUnit 100"))
    assert opened.image.size == (3584, 3584)
    assert opened.notes == ("a large page, read at 0.179 instead of 150 dpi",)


def test_units_are_looked_for_in_compressed_objects_too() -> None:
    for word, found in ((b"/UserUnit 2", True), (b"/Rotate 90", False)):
        objects = zlib.compress(b"3 0 << /Type /Page %s >>" % word)
        data = one_page(b"0 0 9 9", more=(stream(b"/Type /ObjStm /Filter /FlateDecode /N 1", objects),))
        assert may_have_units(data) == found
    assert not may_have_units(one_page(b"0 0 9 9", more=(stream(b"/Type /ObjStm", b"none"),)))
    assert may_have_units(
        one_page(b"0 0 9 9", more=(stream(b"/Type /ObjStm", b"?"),), trailer=b"/Encrypt 9 0 R")
    )
