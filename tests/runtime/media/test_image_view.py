"""Places in the image that the model sees, in the original, and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from ernie_local.errors import UsageError
from ernie_local.media import decode
from ernie_local.media.image_view import ImageView, ViewBox
from ernie_local.media.open_image import open_images
from tests.pdf_files import one_page, stream

SIDES = st.integers(1, 5000)


@st.composite
def views(draw: st.DrawFn) -> ImageView:
    opened_size = width, height = draw(st.tuples(SIDES, SIDES))
    original_size = draw(st.none() | st.tuples(st.floats(0.5, 1e5), st.floats(0.5, 1e5)))
    view = ImageView.whole(opened_size, original_size, draw(st.integers(1, 8)))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return view.cropped((left, top, right, bottom)).resized(draw(st.tuples(SIDES, SIDES)))


@given(
    views(),
    st.tuples(st.floats(-100, 1100), st.floats(-100, 1100)),
    st.sampled_from(["thousandths", "pixels"]),
)
def test_there_and_back_is_the_same_place(view: ImageView, point: tuple[float, float], unit: str) -> None:
    there = view.to_original(point, unit)  # type: ignore[arg-type]
    # A pixel of a narrow cut takes a thousandth of the digits.
    assert view.from_original(there, unit) == pytest.approx(point, rel=1e-6, abs=1e-6)  # type: ignore[arg-type]


@given(views(), st.tuples(*[st.floats(0, 1000)] * 4))
def test_boxes_lie_in_the_original_with_their_corners_in_order(view: ImageView, box: ViewBox) -> None:
    left, top, right, bottom = found = view.box_to_original(box)
    width, height = view.original_size
    assert -1e-6 * width <= left <= right <= width * (1 + 1e-6)
    assert -1e-6 * height <= top <= bottom <= height * (1 + 1e-6)
    ordered = (*sorted(box[::2]), *sorted(box[1::2]))
    assert view.box_from_original(found) == pytest.approx(
        (ordered[0], ordered[2], ordered[1], ordered[3]), rel=1e-6, abs=1e-5
    )


@given(views())
def test_all_that_is_seen_is_the_part_that_was_kept(view: ImageView) -> None:
    in_pixels = view.upright.box_to_original((0, 0, *view.seen_size), "pixels")
    scales = [
        ours / theirs for ours, theirs in zip(view.upright.original_size, view.opened_size, strict=True)
    ]
    kept = [side * scales[index % 2] for index, side in enumerate(view.crop)]
    assert in_pixels == pytest.approx(kept, abs=1e-6 * max(view.original_size))
    assert view.upright.box_to_original((0, 0, 1000, 1000)) == pytest.approx(in_pixels)


def _with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@given(size=st.tuples(st.integers(1, 12), st.integers(1, 12)), data=st.data())
def test_a_marked_pixel_is_found_where_pillow_turns_it(
    orientation: int, size: tuple[int, int], data: st.DataObject
) -> None:
    x, y = (data.draw(st.integers(0, side - 1)) for side in size)
    stored = Image.new("RGB", size)
    stored.putpixel((x, y), (255, 0, 0))
    file = _with_orientation(stored, orientation)
    with Image.open(io.BytesIO(file)) as again:
        turned = np.asarray(ImageOps.exif_transpose(again))
    (opened,) = open_images(file)
    assert np.array_equal(np.asarray(opened.image), turned)
    ((row, column),) = np.argwhere(turned[:, :, 0] > 0)
    seen = opened.view.resized((28 * 3, 28 * 5))
    height, width = turned.shape[:2]
    box = (column * 84 / width, row * 140 / height, (column + 1) * 84 / width, (row + 1) * 140 / height)
    assert seen.box_to_original(box, "pixels") == pytest.approx((x, y, x + 1, y + 1), abs=1e-9)
    assert seen.upright.box_to_original(box, "pixels") == pytest.approx(
        (column, row, column + 1, row + 1), abs=1e-9
    )


def test_a_cut_within_a_cut_is_counted_from_the_whole() -> None:
    view = ImageView.whole((100, 80)).cropped((10, 20, 60, 70)).cropped((5, 5, 25, 15))
    assert view.crop == (15, 25, 35, 35)
    assert view.to_original((500, 500)) == pytest.approx((25, 30))


@pytest.mark.parametrize(
    "box", [(0, 0, 101, 80), (-1, 0, 10, 10), (10, 0, 10, 5), (0, 5, 5, 4), (0, 0, 10**9, 5)]
)
def test_a_part_outside_of_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not lie in an image of 100 x 80"):
        ImageView.whole((100, 80)).cropped(box)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unit 'percent' .*\n.*\ntry: use \"thousandths\""):
        ImageView.whole((10, 10)).to_original((1, 1), "percent")  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_image_is_true_to_the_pixels_that_were_joined(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By threes, which divide neither side."""
    monkeypatch.setattr(decode, "MOST_VISIBLE_PIXELS", 200 * 100 // 9)
    image = Image.new("RGB", (200, 100), "white")
    image.paste((0, 0, 0), (120, 30, 150, 48))
    (opened,) = open_images(_with_orientation(image, orientation))
    assert sorted(opened.image.size) == [34, 67]
    assert (opened.view.opened_size, opened.view.original_size) == (opened.image.size, (200, 100))
    found = opened.view.box_to_original(dark_box(opened.image), "pixels")
    assert found == pytest.approx((120, 30, 150, 48), abs=3)


def dark_box(image: Image.Image) -> ViewBox:
    rows, columns = np.nonzero(np.asarray(image.convert("L")) < 128)
    return float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1


@pytest.mark.parametrize(
    ("turn", "size", "box"),
    [
        (b"", [612, 792], (100, 72, 150, 92)),  # the page counts from its lower left corner
        (b"/Rotate 90", [792, 612], (700, 100, 720, 150)),
        (b"/CropBox [50 600 350 792]", [300, 192], (50, 72, 100, 92)),
    ],
)
def test_a_page_of_a_pdf_is_measured_in_points_as_it_is_shown(
    tmp_path: Path, turn: bytes, size: list[float], box: ViewBox
) -> None:
    path = tmp_path / "page.pdf"
    content = stream(b"", b"100 700 50 20 re f")
    path.write_bytes(one_page(b"0 0 612 792", b"/Contents 4 0 R " + turn, more=(content,)))
    (opened,) = open_images(path)
    assert list(opened.view.original_size) == size
    assert opened.view.box_to_original(dark_box(opened.image), "pixels") == pytest.approx(box, abs=0.6)
