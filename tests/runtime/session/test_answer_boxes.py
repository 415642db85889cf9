"""Boxes of answers in the images of a chat: the right image, the right pixels, and drawn there."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from ernie_local import ImagePart
from ernie_local.errors import ErnieLocalError, UsageError
from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import AnswerBox, ChatImage, drawing_paths, open_chat_images, write_drawings
from ernie_local.session.boxes import locate_boxes

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks

BLUE = (0, 114, 178)  # of the first box


def marked_file(
    stored: tuple[int, int], mark: tuple[int, int, int, int], orientation: int
) -> tuple[bytes, Image.Image]:
    """A file with a black block at `mark` of its stored pixels, and the image as viewers show it."""
    image = Image.new("RGB", stored, "white")
    image.paste((0, 0, 0), mark)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    with Image.open(io.BytesIO(stream.getvalue())) as again:
        return stream.getvalue(), ImageOps.exif_transpose(again).convert("RGB")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_answer_leads_back_to_the_stored_pixels(data: st.DataObject) -> None:
    """Random turns, cuts and shrinks: the block that the model points at is the block of the file."""
    width, height = data.draw(st.tuples(st.integers(60, 400), st.integers(60, 400)))
    left, top = data.draw(st.tuples(st.integers(0, width - 20), st.integers(0, height - 20)))
    right = data.draw(st.integers(left + 10, width))
    bottom = data.draw(st.integers(top + 10, height))
    file, viewed = marked_file((width, height), (left, top, right, bottom), data.draw(st.integers(1, 8)))
    rows, columns = np.nonzero(np.asarray(viewed)[:, :, 0] < 128)
    upright = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    cut = (
        data.draw(st.integers(0, upright[0])),
        data.draw(st.integers(0, upright[1])),
        data.draw(st.integers(upright[2], viewed.width)),
        data.draw(st.integers(upright[3], viewed.height)),
    )
    (opened,) = open_images(file)
    part = ImagePart(opened.cropped(cut), image_tokens=data.draw(st.integers(8, 200)))
    (image,) = open_chat_images([part], ImageProcessorConfig())
    across, down = cut[2] - cut[0], cut[3] - cut[1]
    place = [(side - cut[index % 2]) * 1000 / (across, down)[index % 2] for index, side in enumerate(upright)]
    (box,), notes = locate_boxes(json.dumps({"bbox_2d": place, "label": "block"}), [image], 1)
    assert not notes
    assert (box.label, box.image, box.name) == ("block", 1, "image")
    assert box.original == pytest.approx((left, top, right, bottom), abs=1e-6)
    assert box.thousandths == pytest.approx(place)


def some_images(count: int) -> list[ChatImage]:
    return open_chat_images(
        [Image.new("RGB", (100 * n, 100)) for n in range(1, count + 1)], ImageProcessorConfig()
    )


@pytest.mark.parametrize(
    ("num_images", "num_asked", "text", "number"),
    [
        (1, 0, "[100, 100, 200, 200]", 1),
        (1, 1, "[100, 100, 200, 200]", 1),
        (3, 1, "[100, 100, 200, 200]", 3),
        (3, 3, "[100, 100, 200, 200]", None),
        (3, 0, "[100, 100, 200, 200]", None),
        (3, 3, "Picture 2: [100, 100, 200, 200]", 2),
        (3, 1, '{"image": 1, "box": [100, 100, 200, 200]}', 1),
        (0, 0, "[100, 100, 200, 200]", None),
    ],
)
def test_the_image_of_a_box(num_images: int, num_asked: int, text: str, number: int | None) -> None:
    (box,), notes = locate_boxes(text, some_images(num_images), num_asked)
    assert (box.image, notes) == (number, ())
    assert box.original == (None if number is None else (10 * number, 10, 20 * number, 20))


def test_a_number_beyond_the_images_is_told() -> None:
    (box,), notes = locate_boxes("Picture 7: [1, 2, 3, 4]", some_images(2), 2)
    assert (box.image, box.original) == (None, None)
    assert notes == ("a box: image 7 of a chat with 2",)


def test_an_answer_has_its_boxes(talk: Talks, image: Path) -> None:
    one = talk()
    one.ask("hello", "no place", thinking=False)
    says = '{"label": "spot", "bbox_2d": [0, 500, 1000, 1000]}'
    answer = one.ask("where?", says, images=[image], thinking=False)
    width, height = answer.images[0].original_size
    assert answer.boxes == (
        AnswerBox("spot", 1, str(image), (0, height / 2, width, height), (0, 500, 1000, 1000)),
    )
    assert one.ask("again", "bbox: [1, 2, 3]", thinking=False).box_notes == (
        "a box: [1, 2, 3] has 3 numbers, a box has 4",
    )
    assert one.chat.last is not None
    assert one.chat.last.boxes == ()


def blue_box(path: Path) -> tuple[int, int, int, int]:
    with Image.open(path) as image:
        rows, columns = np.nonzero((np.asarray(image) == BLUE).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_drawings_are_upright_and_as_large_as_the_file(tmp_path: Path, trim: bool, orientation: int) -> None:
    file, viewed = marked_file((600, 400), (200, 150, 400, 250), orientation)
    path = tmp_path / "scan.png"
    path.write_bytes(file)
    (image,) = open_chat_images([ImagePart(path, image_tokens=20, trim=trim)], ImageProcessorConfig())
    block = image.view.box_from_original((200, 150, 400, 250))
    boxes, _ = locate_boxes(json.dumps({"box": list(block)}), [image], 1)
    image.release()
    (drawn,) = write_drawings(tmp_path / "boxes.png", boxes, [image])
    assert path.read_bytes() == file
    with Image.open(drawn) as again:
        assert again.size == viewed.size
    rows, columns = np.nonzero(np.asarray(viewed)[:, :, 0] < 128)
    left, top, right, bottom = blue_box(drawn)
    assert (left, right, bottom) == pytest.approx((columns.min(), columns.max() + 1, rows.max() + 1), abs=1)
    assert top <= rows.min()  # the label stands above


def test_of_a_trimmed_image_from_memory_the_part_is_drawn(tmp_path: Path) -> None:
    file, _ = marked_file((600, 400), (200, 150, 400, 250), 1)
    (image,) = open_chat_images([ImagePart(file, trim=True)], ImageProcessorConfig())
    block = image.view.box_from_original((200, 150, 400, 250))
    boxes, _ = locate_boxes(json.dumps({"box": list(block)}), [image], 1)
    (drawn,) = write_drawings(tmp_path / "boxes.png", boxes, [image])
    with Image.open(drawn) as again:
        assert again.size == image.view.cropped_size
    x, y = image.view.crop[:2]
    assert blue_box(drawn)[2:] == pytest.approx((400 - x, 250 - y), abs=1)


def test_several_images_get_numbered_drawings(tmp_path: Path) -> None:
    images = some_images(3)
    boxes, _ = locate_boxes("Picture 3: [0, 0, 500, 500] Image 1: [0, 0, 500, 500]", images, 3)
    written = write_drawings(tmp_path / "out.png", boxes, images)
    assert [path.name for path in written] == ["out-1.png", "out-3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-1.png", "out-3.png"]


def test_no_drawing_goes_over_an_image_of_the_chat(tmp_path: Path) -> None:
    for name in ("a.png", "b-2.png", "scan:1.png"):
        Image.new("RGB", (100, 100)).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    images = open_chat_images([tmp_path / name for name in ("a.png", "b-2.png")], ImageProcessorConfig())
    for name in ("a.png", "link.png", "hard.png", "b.png"):
        with pytest.raises(UsageError, match="will not draw over"):
            drawing_paths(tmp_path / name, images)
    (colon,) = open_chat_images([tmp_path / "scan:1.png"], ImageProcessorConfig())
    with pytest.raises(UsageError, match="will not draw over"):
        drawing_paths(tmp_path / "scan:1.png", [colon])
    with pytest.raises(UsageError, match=r"drawings are PNG files"):
        drawing_paths(tmp_path / "new.jpg", images)
    boxes, _ = locate_boxes("[1, 2, 3, 4]", images[:1], 1)
    with pytest.raises(ErnieLocalError, match="cannot write a drawing"):
        write_drawings(tmp_path / "no" / "where.png", boxes, images[:1])
