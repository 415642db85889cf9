"""Places the boxes of an answer in the images of its chat, and draws them on copies of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ernie_local.errors import UsageError
from ernie_local.files import place_of_new_file, shared_file
from ernie_local.media.draw_boxes import DrawnBox, draw_boxes, save_drawing
from ernie_local.media.image_view import ViewBox
from ernie_local.media.pages import split_page_request
from ernie_local.session.image import ChatImage
from ernie_local.text.boxes import FoundBox, find_boxes


@dataclass(frozen=True, slots=True)
class AnswerBox:
    """A place in an image that an answer names.

    label: what is there, None where the answer does not say. image: the number of the image, counted from 1
    over the whole chat, and name: its name; both None where the chat has several images and the answer does
    not say which. original: (left, top, right, bottom) in pixels of the stored file, before its EXIF turn; of
    a PDF page in points, as of `ImageView.to_original`; None as the image. thousandths: of what the model
    sees, as it was written.
    """

    label: str | None
    image: int | None
    name: str | None
    original: ViewBox | None
    thousandths: ViewBox


def locate_boxes(
    text: str, images: Sequence[ChatImage], num_asked: int, num_given: int = 0
) -> tuple[tuple[AnswerBox, ...], tuple[str, ...]]:
    """The boxes of an answer, and notes on what is no box.

    images: of the whole chat, as the prompt numbers them. The last `num_given` came from tools, and the
    `num_asked` before them belong to this question. A box without a number lies in the only image of the
    chat, or else of the question; never in a part that was zoomed into, as models write thousandths of the
    whole.
    """
    found = find_boxes(text)
    notes = list(found.refused)
    shown = images[: len(images) - num_given]
    whole = [number for number, image in enumerate(shown, start=1) if image.origin is None]
    likely = whole[-1] if whole and (len(whole) == 1 or num_asked == 1) else None
    boxes = [_located(box, images, likely) for box in found.boxes]
    notes.extend(
        f"{box.label or 'a box'}: image {box.image} of a chat with {len(images)}"
        for box in found.boxes
        if box.image is not None and box.image > len(images)
    )
    return tuple(boxes), tuple(notes)


def _located(box: FoundBox, images: Sequence[ChatImage], likely: int | None) -> AnswerBox:
    number = likely if box.image is None else box.image
    if number is None or number > len(images):
        return AnswerBox(box.label, None, None, None, box.place)
    image = images[number - 1]
    place = image.view.box_to_original(box.place)
    return AnswerBox(box.label, number, image.name, place, box.place)


def drawing_paths(path: Path, images: Sequence[ChatImage]) -> list[Path]:
    """Where `write_drawings` puts each image: at `path`, or numbered (boxes-2.png) where there are several.

    Parts that were zoomed into are always numbered.

    UsageError where that is the file of an image, or no PNG.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(
            f"a drawing cannot be saved as {path}", "drawings are PNG files", f"{path.with_suffix('.png')}"
        )
    num_whole = sum(image.origin is None for image in images)
    paths = [
        path if num_whole == 1 and image.origin is None else path.with_stem(f"{path.stem}-{number}")
        for number, image in enumerate(images, start=1)
    ]
    files = [Path(split_page_request(image.path)[0]) for image in images if image.path is not None]
    files += [Path(image.path) for image in images if image.path is not None]
    for one in (path, *paths):
        if one.exists() and any(file.exists() and one.samefile(file) for file in files):
            raise UsageError(
                f"will not draw over {one}",
                "it is the file of an image of this chat",
                "give another path, such as boxes.png",
            )
    return paths


def write_drawings(path: Path, boxes: Sequence[AnswerBox], images: Sequence[ChatImage]) -> list[Path]:
    """Draw the boxes on copies of their images, as large as these are in their files; the files written.

    images: of the chat, as `AnswerBox.image` numbers them. Boxes are numbered from 1 in the order of `boxes`.
    An image without a box gets no file. Errors of `drawing_paths` and `ChatImage.in_full`, and
    ErnieLocalError where a file cannot be written.
    """
    written = []
    for index, (image, place) in enumerate(zip(images, drawing_paths(path, images), strict=True), start=1):
        mine = [(number, box) for number, box in enumerate(boxes, start=1) if box.image == index]
        if not mine:
            continue
        opened = image.in_full()
        # What is left of an image from memory begins at the corner of its crop.
        left, top = image.view.crop[:2] if opened.image.size != image.view.opened_size else (0, 0)
        drawn = []
        for number, box in mine:
            corners = image.view.opened.box_to_original(box.thousandths)
            at = (corners[0] - left, corners[1] - top, corners[2] - left, corners[3] - top)
            drawn.append(DrawnBox(at, number, box.label))
        with shared_file(place_of_new_file(place), "a drawing") as new:
            save_drawing(draw_boxes(opened.image, drawn), new)
        written.append(place)
    return written
