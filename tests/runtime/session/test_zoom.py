"""The zoom tool: parts are cut from the pixels of the original; bad boxes are errors that a model reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageChops, ImageOps

from ernie_local.errors import InputUnreadable
from ernie_local.media import decode
from ernie_local.media.image_view import whole_pixels
from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import Chat, ChatImage, ImagePart, open_chat_images
from ernie_local.session.boxes import drawing_paths, locate_boxes
from tests.pdf_files import one_page, stream

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks

PROCESSOR = ImageProcessorConfig(min_pixels=28 * 28, max_pixels=28 * 28 * 40)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixels(image: ChatImage) -> Image.Image:
    return image.in_full().image


def thousandths(box: tuple[int, ...], inside: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """A box in pixels as a model writes it that sees the part `inside`."""
    left, top, right, bottom = inside
    width, height = right - left, bottom - top
    return (
        (box[0] - left) * 1000 / width,
        (box[1] - top) * 1000 / height,
        (box[2] - left) * 1000 / width,
        (box[3] - top) * 1000 / height,
    )


@settings(max_examples=15)
@given(data=st.data())
def test_a_part_has_the_pixels_of_the_original(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Random turns, cuts and shrinks, of files and of images in memory; and parts of parts."""
    size = data.draw(st.tuples(st.integers(40, 200), st.integers(40, 200)))
    image = noise(size)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = data.draw(st.integers(1, 8))
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    with Image.open(io.BytesIO(stream.getvalue())) as again:
        upright = ImageOps.exif_transpose(again).convert("RGB")

    def box_in(outer: tuple[int, int, int, int], least: int) -> tuple[int, int, int, int]:
        left = data.draw(st.integers(outer[0], outer[2] - least))
        top = data.draw(st.integers(outer[1], outer[3] - least))
        right = data.draw(st.integers(left + least, outer[2]))
        return left, top, right, data.draw(st.integers(top + least, outer[3]))

    cut = box_in((0, 0, *upright.size), 30)
    source: Any = stream.getvalue()
    if data.draw(st.booleans()):
        source = tmp_path_factory.getbasetemp() / "noise.png"
        source.write_bytes(stream.getvalue())
    (opened,) = open_images(source)
    part = ImagePart(opened.cropped(cut), image_tokens=data.draw(st.integers(24, 40)))
    (seen,) = open_chat_images([part], PROCESSOR)
    block = box_in(cut, 10)
    zoomed = seen.zoomed(thousandths(block, cut))
    assert pixels(zoomed).tobytes() == upright.crop(block).tobytes()
    assert zoomed.view.box_to_original((0, 0, 1000, 1000)) == pytest.approx(
        seen.view.box_to_original(thousandths(block, cut))
    )
    inner = box_in(block, 8)
    assert pixels(zoomed.zoomed(thousandths(inner, block))).tobytes() == upright.crop(inner).tobytes()


def test_all_pixels_that_a_box_touches_are_taken() -> None:
    assert whole_pixels((1.2, 2.9, 3.1, 4.0), (10, 10)) == (1, 2, 4, 4)
    assert whole_pixels((9.99, 3.0, 9.999, 3.0), (10, 10)) == (9, 3, 10, 4)
    assert whole_pixels((-5.0, -5.0, 50.0, 50.0), (10, 10)) == (0, 0, 10, 10)


def test_a_part_of_a_reduced_image_is_not_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MOST_VISIBLE_PIXELS", 5000)
    page = noise((300, 200))
    page.save(tmp_path / "page.png")
    (seen,) = open_chat_images([tmp_path / "page.png"], PROCESSOR)
    assert seen.view.opened_size == (100, 67)
    zoomed = seen.zoomed((100, 200, 500, 600))
    assert pixels(zoomed).tobytes() == page.crop((30, 40, 150, 120)).tobytes()
    page.crop((0, 0, 250, 200)).save(tmp_path / "page.png")
    with pytest.raises(InputUnreadable, match=r"300 x 200 pixels when it was asked about, 250 x 200 now"):
        seen.zoomed((100, 200, 500, 600))


def test_a_part_of_a_page_is_drawn_anew(tmp_path: Path) -> None:
    path = tmp_path / "page.pdf"
    lines = b"".join(b"%d %d m %d %d l S " % (x, x % 50, 200 - x, 90 - x % 30) for x in range(0, 200, 3))
    path.write_bytes(one_page(b"0 0 200 100", b"/Contents 4 0 R /Rotate 180", more=(stream(b"", lines),)))
    (seen,) = open_chat_images([f"{path}:1"], PROCESSOR)
    box = seen.view.box_to_original((250, 100, 500, 400))
    zoomed = seen.zoomed((250, 100, 500, 400))
    square_inches = (box[2] - box[0]) * (box[3] - box[1]) / 72**2
    dpi = min(600.0, (PROCESSOR.max_pixels / square_inches) ** 0.5)
    (page,) = open_images(f"{path}:1", pdf_dpi=dpi)
    assert zoomed.view.crop[2] <= page.image.width
    difference = ImageChops.difference(pixels(zoomed), page.image.crop(zoomed.view.crop))
    assert np.asarray(difference).max() <= 4  # of 255: edges are smoothed a little otherwise
    assert zoomed.view.box_to_original((0, 0, 1000, 1000)) == pytest.approx(box, abs=72 / dpi)


ZOOM = '<tool_call>\n{{"name": "image_zoom_in_tool", "arguments": {}}}\n</tool_call>\n'


def zoom(talk: Talks, images: list[Any], *arguments: str) -> Any:
    """The chat after a question and a round of these calls."""
    one = talk(variant="thinking", zoom=True)
    one.engine.say("look\n</think>\n\n" + "".join(map(ZOOM.format, arguments)), "</think>\n\nred")
    list(one.chat.ask("What?", images=images))
    return one


def test_the_model_sees_the_part_as_the_next_picture(talk: Talks, tmp_path: Path) -> None:
    page = noise((800, 600))
    page.save(tmp_path / "page.png")
    one = zoom(talk, [tmp_path / "page.png"], '{"bbox_2d": [0, 0, 250, 500], "label": "x"}')
    (step,) = one.chat.last.steps
    (part,) = step.result.images
    assert (step.first_image, part.report.read_size, part.report.resized_size) == (2, (200, 300), (84, 112))
    assert pixels(part).tobytes() == page.crop((0, 0, 200, 300)).tobytes()
    (_, first), (_, second) = one.engine.prefills
    assert [len(first), len(second)] == [1, 1]
    assert second[0].grid == part.grid
    assert "<tool_output>\n Picture 2:<|IMAGE_START|>" in one.cached_text()
    (turn,) = one.chat.history
    assert turn.images == (one.chat.history[0].question[0].images[0], part)


def test_a_box_of_the_answer_is_in_the_whole_image(talk: Talks) -> None:
    images = open_chat_images([noise((100, 60)), noise((90, 90), 1)], PROCESSOR)
    shown = [*images, images[1].zoomed((0, 0, 500, 500))]
    part = images[0].zoomed((0, 0, 500, 500))
    cases: list[tuple[Any, ...]] = [
        (1, "[1, 2, 3, 4]", 1, 1, [images[0], part]),
        (1, "[1, 2, 3, 4]", 0, 0, [images[0], part]),  # the next question
        (2, "[1, 2, 3, 4]", 1, 1, shown),
        (None, "[1, 2, 3, 4]", 2, 1, shown),
        (3, "Picture 3: [0, 0, 1000, 1000]", 2, 1, shown),
    ]
    for number, text, num_asked, num_given, chat in cases:
        (box,), _ = locate_boxes(text, chat, num_asked, num_given)
        assert box.image == number
        assert number != 3 or box.original == (0, 0, 45, 45)
    paths = drawing_paths(Path("out.png"), [shown[1], shown[2]])
    assert [path.name for path in paths] == ["out.png", "out-2.png"]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("{}", "bbox_2d is missing"),
        ('{"bbox_2d": []}', "bbox_2d is missing"),
        ('{"bbox_2d": null}', "bbox_2d is missing"),
        ('{"bbox_2d": [1, 2, 3]}', "bbox_2d: [1, 2, 3] has 3 numbers, a box has 4"),
        ('{"bbox_2d": [500, 2, 3, 700]}', "bbox_2d: [500, 2, 3, 700] is reversed"),
        ('{"bbox_2d": [5, 700, 300, 7]}', "bbox_2d: [5, 700, 300, 7] is reversed"),
        ('{"bbox_2d": [1200, 2, 1300, 7]}', "bbox_2d: [1200, 2, 1300, 7] lies outside of the image"),
        ('{"bbox_2d": [10, 10, 10, 20]}', "bbox_2d: [10, 10, 10, 20] has no area"),
        ('{"bbox_2d": ["1", "2", "3", "4"]}', "bbox_2d: its place is not a list of numbers"),
        ('{"bbox_2d": "1, 2, 3, 4"}', "bbox_2d: its place is not a list of numbers"),
        ('{"bbox_2d": {"x1": 1}}', "bbox_2d: its place is not a list of numbers"),
        ('{"bbox_2d": [[1, 2], 3, 4]}', "bbox_2d: its place is not a list of numbers"),
        ('{"bbox_2d": [1e999, 2, 3, 4]}', "bbox_2d: [inf, 2, 3, 4] is not a place"),
        ('{"bbox_2d": [1, 2, 30, 40], "label": 7}', "label is 7, where a text belongs"),
        ('{"bbox_2d": [1, 2, 30, 40], "img_idx": 1}', "img_idx is 1: the chat has 1 images, counted from 0"),
        ('{"bbox_2d": [0, 0, 1000, 1]}', "image [0, 0, 402, 0]: 402 x 1 pixels, one side 402.0 times"),
    ],
)
def test_a_bad_box_is_an_error_that_the_model_reads(talk: Talks, arguments: str, read: str) -> None:
    one = zoom(talk, [noise((402, 60))], arguments)
    (step,) = one.chat.last.steps
    assert step.is_error
    assert read in step.result.text
    assert step.result.text.startswith("error: ")
    assert one.chat.last.text == "red"
    assert f"<tool_output>\n{step.result.text}\n</tool_output>" in one.cached_text()


def test_a_box_over_the_edge_is_cut_there(talk: Talks) -> None:
    page = noise((100, 60))
    one = zoom(talk, [page], '{"bbox_2d": [500, -20, 1010, 500]}')
    (part,) = one.chat.last.steps[0].result.images
    assert pixels(part).tobytes() == page.crop((50, 0, 100, 30)).tobytes()


def test_of_several_images_a_call_has_to_say_which(talk: Talks) -> None:
    pages = [noise((100, 60)), noise((90, 90), 1)]
    box = '"bbox_2d": [0, 0, 500, 500]'
    one = zoom(talk, pages, f"{{{box}}}", f'{{{box}, "img_idx": 1}}', f'{{{box}, "img_idx": 2}}')
    refused, second, part_of_part = one.chat.last.steps
    assert refused.result.text == "error: the chat has 2 images: say which by img_idx, counted from 0"
    assert pixels(second.result.images[0]).tobytes() == pages[1].crop((0, 0, 45, 45)).tobytes()
    assert pixels(part_of_part.result.images[0]).tobytes() == pages[1].crop((0, 0, 23, 23)).tobytes()
    # The image of the question is meant where it has one.
    one.engine.say("</think>\n\n" + ZOOM.format(f"{{{box}}}"), "</think>\n\nblue")
    list(one.chat.ask("And this?", images=[noise((40, 40), 2)]))
    (step,) = one.chat.last.steps
    assert pixels(step.result.images[0]).tobytes() == noise((40, 40), 2).crop((0, 0, 20, 20)).tobytes()


def test_a_saved_part_is_cut_again(talk: Talks, tmp_path: Path) -> None:
    path, saved = tmp_path / "page.png", tmp_path / "chat.json"
    noise((400, 300)).save(path)
    one = zoom(talk, [ImagePart(path, image_tokens=20)], '{"bbox_2d": [100, 200, 700, 900]}')
    one.chat.save(saved)
    again = Chat.load(saved, one.chat.model, variant="thinking")
    assert again.history == one.chat.history
    content = json.loads(saved.read_text())
    image = content["turns"][0]["rounds"][0]["results"][0]["content"][0]
    assert image == {
        "path": str(path),
        "original_size": [400, 300],
        "zoomed": [40, 60, 280, 270],
        "max_tokens": 20,
    }
    for zoomed in ([1, 2, 3], [5, 5, 5, 9], ["a", 1, 2, 3], [-1, 0, 5, 5]):
        image["zoomed"] = zoomed
        saved.write_text(json.dumps(content))
        with pytest.raises(InputUnreadable, match="a part of it is missing or wrong"):
            Chat.load(saved, one.chat.model, variant="thinking")
    image |= {"zoomed": [0, 0, 50, 50], "path": "-"}
    saved.write_text(json.dumps(content))
    with pytest.raises(InputUnreadable, match="standard input"):
        Chat.load(saved, one.chat.model, variant="thinking")
