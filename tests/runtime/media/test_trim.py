"""Blank margins are cut; content never is."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw

from ernie_local.media.image_view import CropBox
from ernie_local.media.open_image import open_images
from ernie_local.media.trim import find_content, trim_margins

SIZE = WIDTH, HEIGHT = 620, 877  # A4 at 75 dpi
TEXT = (150, 200, 443, 640)  # what `page` fills
MARGIN = 9  # a hundredth of the longer side


def page(paper: int = 255, ink: int = 0) -> Image.Image:
    """Lines of words in the middle."""
    image = Image.new("RGB", SIZE, (paper,) * 3)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = TEXT
    for y in range(top, bottom, 16):
        for x in range(left, right, 30):
            draw.rectangle((x, y, x + 22, y + 7), fill=(ink,) * 3)
    return image


def with_margin(box: CropBox, size: tuple[int, int] = SIZE) -> CropBox:
    left, top, right, bottom = box
    width, height = size
    return (
        max(0, left - MARGIN),
        max(0, top - MARGIN),
        min(width, right + MARGIN),
        min(height, bottom + MARGIN),
    )


def covers(found: CropBox | None, box: CropBox) -> bool:
    """Whether all of `box` is left; None cuts nothing."""
    if found is None:
        return True
    return found[0] <= box[0] and found[1] <= box[1] and found[2] >= box[2] and found[3] >= box[3]


def as_jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def compress(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("RGB")

    return compress


def grained(deviation: float, seed: int = 0) -> Callable[[Image.Image], Image.Image]:
    def scan(image: Image.Image) -> Image.Image:
        grain = np.random.default_rng(seed).normal(0, deviation, (*image.size[::-1], 3))
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))

    return scan


def shaded(image: Image.Image) -> Image.Image:
    """Light that falls off from left to right by a twentieth."""
    light = np.linspace(1, 0.95, image.width)[None, :, None]
    return Image.fromarray((np.asarray(image) * light).astype(np.uint8))


WEARS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "clean": lambda image: image,
    "jpeg 30": as_jpeg(30),
    "jpeg 90": as_jpeg(90),
    "grain": grained(3),
    "much grain": grained(7),
    "grain in a jpeg": lambda image: as_jpeg(60)(grained(4)(image)),
    "shade": shaded,
}


@pytest.mark.parametrize("wear", WEARS.values(), ids=WEARS)
@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (235, 40), (20, 250), (140, 30)])
def test_margins_are_cut_to_a_small_one(
    wear: Callable[[Image.Image], Image.Image], paper: int, ink: int
) -> None:
    found = find_content(wear(page(paper, ink)))
    assert found is not None
    assert covers(found, TEXT)
    # JPEG blocks and averages over strokes reach a little further.
    assert found == pytest.approx(with_margin(TEXT), abs=17)


def test_a_clean_page_keeps_its_margin() -> None:
    found = find_content(page())
    assert found is not None
    assert covers(found, with_margin(TEXT))
    assert found == pytest.approx(with_margin(TEXT), abs=15)


@pytest.mark.parametrize("wear", WEARS.values(), ids=WEARS)
@pytest.mark.parametrize(
    "line",
    [(12, 100, 12, 800), (608, 30, 608, 300), (40, 15, 560, 15), (300, 865, 420, 865)],
    ids=["left", "right", "top", "bottom"],
)
def test_a_line_of_one_pixel_in_the_margin_stays(
    wear: Callable[[Image.Image], Image.Image], line: tuple[int, int, int, int]
) -> None:
    image = page()
    ImageDraw.Draw(image).line(line, fill=(90, 90, 90))
    assert covers(find_content(wear(image)), (line[0], line[1], line[2] + 1, line[3] + 1))


@pytest.mark.parametrize(
    ("wear", "level"), [("clean", 246), ("grain", 220), ("much grain", 205), ("jpeg 90", 235)]
)
def test_a_faint_line_stays(wear: str, level: int) -> None:
    """Also one that hides under the grain, pixel by pixel."""
    image = page(240 if "grain" in wear else 255)
    draw = ImageDraw.Draw(image)
    draw.line((40, 15, 560, 15), fill=(level,) * 3)
    draw.line((30, 60, 30, 850), fill=(level,) * 3)
    assert covers(find_content(WEARS[wear](image)), (30, 15, 560, 850))


def test_a_faint_colour_stays() -> None:
    image = page()
    ImageDraw.Draw(image).line((40, 15, 560, 15), fill=(255, 255, 225))
    assert covers(find_content(image), (40, 15, 561, 16))


@pytest.mark.parametrize("edge", [(0, 0, WIDTH, 40), (0, HEIGHT - 40, WIDTH, HEIGHT), (0, 0, 30, HEIGHT)])
def test_a_pale_band_along_an_edge_is_no_grain(edge: CropBox) -> None:
    image = page()
    image.paste((241, 246, 255), edge)
    found = find_content(image)
    assert found is not None
    assert covers(found, edge)


@pytest.mark.parametrize("wear", WEARS.values(), ids=WEARS)
@pytest.mark.parametrize("place", [(300, 862), (4, 5), (608, 868), (604, 3)])
def test_a_page_number_near_the_edge_stays(
    wear: Callable[[Image.Image], Image.Image], place: tuple[int, int]
) -> None:
    image = page()
    draw = ImageDraw.Draw(image)
    draw.text(place, "7", fill=(0, 0, 0), font_size=9)
    x, y = place
    # The digit as Pillow drew it.
    region = np.asarray(image.convert("L"))[y : y + 14, x : x + 10] < 128
    rows, columns = np.nonzero(region)
    box = (
        int(x + columns.min()),
        int(y + rows.min()),
        int(x + columns.max() + 1),
        int(y + rows.max() + 1),
    )
    assert covers(find_content(wear(image)), box)


@given(
    st.tuples(st.integers(0, 89), st.integers(0, 119), st.integers(1, 90), st.integers(1, 120)),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_a_block_on_even_paper_is_never_cut(block: CropBox, paper: int, ink: int) -> None:
    """Wherever it lies; what differs by at least 7 of 255 counts as content."""
    left, top, width, height = block
    box = (left, top, min(left + width, 90), min(top + height, 120))
    image = Image.new("RGB", (90, 120), (paper,) * 3)
    image.paste((ink,) * 3, box)
    found = find_content(image)
    # What fills most of the edge is the paper.
    if abs(paper - ink) > 6 and (box[2] - box[0]) * (box[3] - box[1]) < 0.3 * 90 * 120:
        assert covers(found, box) or _most_of_the_edge_is(image, ink)


def _most_of_the_edge_is(image: Image.Image, level: int) -> bool:
    gray = np.asarray(image.convert("L"))
    edge = np.concatenate([gray[:2].ravel(), gray[-2:].ravel(), gray[:, :1].ravel(), gray[:, -1:].ravel()])
    return bool((edge == level).mean() >= 0.5)


@pytest.mark.parametrize("paper", [0, 128, 255])
@pytest.mark.parametrize("wear", WEARS.values(), ids=WEARS)
def test_a_blank_page_stays_whole(wear: Callable[[Image.Image], Image.Image], paper: int) -> None:
    assert find_content(wear(Image.new("RGB", SIZE, (paper,) * 3))) is None


def photo() -> Image.Image:
    """Sky over a landscape: smooth above, detailed below."""
    rng = np.random.default_rng(1)
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    sky = np.array([120, 170, 240]) + rows * np.array([100, 60, -20])
    land = rng.integers(20, 140, (HEIGHT, WIDTH, 3))
    pixels = np.where(rows < 0.55, np.broadcast_to(sky, land.shape), land)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("turns", range(4))
def test_a_photo_is_not_cut(turns: int) -> None:
    assert find_content(photo().rotate(90 * turns, expand=True)) is None


def test_a_photo_on_paper_is_cut_to_the_photo() -> None:
    image = Image.new("RGB", (WIDTH + 400, HEIGHT + 400), "white")
    image.paste(photo(), (150, 250))
    found = find_content(image)
    assert found is not None
    assert covers(found, (150, 250, 150 + WIDTH, 250 + HEIGHT))
    assert (found[2] - found[0], found[3] - found[1]) == pytest.approx((WIDTH + 40, HEIGHT + 40), abs=16)


def test_a_side_with_something_at_its_edge_stays_and_the_others_are_cut() -> None:
    image = page()
    image.paste((0, 0, 0), (0, 300, 40, 420))  # a thumb, or the shadow of a spine
    found = find_content(image)
    assert found is not None
    assert found[0] == 0
    assert found[2] < 500


def test_a_little_margin_is_left_alone() -> None:
    image = Image.new("RGB", (400, 400), "white")
    image.paste((0, 0, 0), (6, 6, 394, 394))
    assert find_content(image) is None


def test_a_line_of_text_alone_does_not_become_a_strip() -> None:
    """The margin is a share of the longer side, so that the result is never too thin for the model."""
    image = Image.new("RGB", (3000, 2000), "white")
    image.paste((0, 0, 0), (0, 1000, 3000, 1001))
    found = find_content(image)
    assert found is not None
    assert found[3] - found[1] > 60


def test_what_is_transparent_is_margin() -> None:
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste(page().convert("RGBA").crop(TEXT), TEXT[:2])
    (opened,) = open_images(image)
    trimmed = trim_margins(opened)
    assert covers(trimmed.view.crop, TEXT)
    assert trimmed.image.width < 350


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_photo_of_a_page_is_cut_upright_and_found_again(orientation: int) -> None:
    exif = page().getexif()
    exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    page().save(stream, "JPEG", quality=95, exif=exif)
    (opened,) = open_images(stream.getvalue())
    trimmed = trim_margins(opened)
    assert trimmed.image.size == trimmed.view.cropped_size
    assert trimmed.view.box_to_original((0, 0, 1000, 1000)) == pytest.approx(with_margin(TEXT), abs=17)


def test_the_view_says_what_was_cut() -> None:
    (opened,) = open_images(page())
    trimmed = trim_margins(opened)
    assert trimmed.image.tobytes() == opened.image.crop(trimmed.view.crop).tobytes()
    assert trimmed.view.is_cropped
    assert not opened.view.is_cropped


def test_an_a4_page_of_300_dpi_takes_a_tenth_of_a_second() -> None:
    """Of computing; a machine under load, and a slow one, take longer."""
    image = page().resize((2480, 3508))
    find_content(image)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        find_content(image)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2), (28, 28)])
def test_tiny_images_are_left_alone(size: tuple[int, int]) -> None:
    assert find_content(Image.new("RGB", size, "white")) is None
    find_content(Image.effect_noise(size, 80).convert("RGB"))
