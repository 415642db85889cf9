"""Opens the images of a chat: where each came from, what the model sees of it, its patches while needed.

Opening measures an image and keeps its pixels; patches, which are larger, are made when a prompt needs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media.detail import Detail, WantedImage, check_detail, settle_details, with_image_tokens
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.media.image_view import CropBox, ImageView, ViewBox, whole_pixels
from ernie_local.media.looks import notes_on_looks
from ernie_local.media.open_image import STDIN_MARK, ImageSource, OpenedImage, open_images, open_part
from ernie_local.media.pages import split_page_request
from ernie_local.media.patches import Patches
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.tokens import Grid
from ernie_local.media.trim import trim_margins
from ernie_local.media.video_size import VideoReport
from ernie_local.reuse.identity import digest_of


@dataclass(frozen=True, slots=True, eq=False)
class ImagePart:
    """An image of a question, and how closely the model is to look at it.

    source: what `open_images` takes, a str being a path, or what it gave. detail: "high" is as much as the
    model's image processor allows, "low" at most 256 tokens, "auto" as high unless the images of its message
    take more than half of the context; see `settle_details`. image_tokens: at most so many, whatever `detail`
    says; an image is never enlarged. trim: cut blank margins. UsageError for another detail.
    """

    source: ImageSource | OpenedImage
    detail: Detail = "high"
    image_tokens: int | None = None
    trim: bool = False

    def __post_init__(self) -> None:
        check_detail(self.detail)


class ImageOrigin(NamedTuple):
    """Where an image was cut from. path: as of ChatImage, None for one from memory. box: as of
    `ImageView.to_original`."""

    path: str | None
    box: ViewBox


class KeyedMedia:
    """What two images, or two videos, are equal by: a hash of all that the model sees of them."""

    content_key: str
    report: ImageReport | VideoReport

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.num_tokens} tokens)"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.content_key == vars(other)["content_key"]

    def __hash__(self) -> int:
        return hash(self.content_key)

    @property
    def name(self) -> str:
        """What to call it to the user."""
        return self.report.name

    @property
    def num_tokens(self) -> int:
        """Placeholders that it fills in the prompt."""
        return self.report.tokens


class ChatImage(KeyedMedia):
    """An opened image and its size in tokens. Its patches are dropped once the engine has taken them.

    report: its sizes before and after resizing. view: where what the model sees lies in the original. path:
    absolute, with the page ("/scans/a.pdf:2"), or None for an image that came from memory. origin: of a part
    that was zoomed into; such a one has no path, and keeps its pixels. content_key: a hash of its pixels and
    of all that makes patches of them. Images of an equal key are equal.
    """

    def __init__(
        self,
        opened: OpenedImage,
        path: str | None,
        processor: ImageProcessorConfig,
        origin: ImageOrigin | None = None,
    ) -> None:
        """InputUnreadable for an image too long and thin for the model, or for its bound of tokens."""
        image, view = opened.image, opened.view
        crop = view.crop if view.is_cropped else None
        report = measure_image(opened.name, view.opened_size, processor, opened.notes, crop)
        notes = notes_on_looks(image, report.scale)
        self.report: ImageReport = replace(report, notes=report.notes + notes)
        self.view: ImageView = view.resized(report.resized_size)
        self.path = path
        self.origin = origin
        shape = (image.size, report.resized_size, processor.patch_size, processor.merge_size)
        self.content_key = digest_of(
            *shape, processor.mean, processor.std, processor.rescale_factor, image.tobytes()
        )
        self._image: Image.Image | None = image
        self._password = opened.password
        self._processor = processor
        self._patches: Patches | None = None

    @property
    def grid(self) -> Grid:
        """(frames, rows, columns) of its patches."""
        width, height = self.report.resized_size
        patch_size = self._processor.patch_size
        return (1, height // patch_size, width // patch_size)

    @property
    def memory_report(self) -> ImageReport:
        """What the planner is to count."""
        return self.report

    def patches(self) -> Patches:
        """The patches, made from the pixels, or from the file where these were dropped.

        InputUnreadable where the file is gone or holds another image by now.
        """
        patches = self._patches  # which another chat may drop meanwhile
        if patches is None:
            image = self._image
            if image is None:
                assert self.path is not None, "an image without a path keeps its pixels"
                report = self.report
                image = _open_same(self.path, report.original_size, report.crop, self._password).image
            self._patches = patches = image_to_patches(image, self._processor)
            if self.path is not None:
                self._image = None
        return patches

    def in_full(self) -> OpenedImage:
        """The image upright with its margins, as large as it was opened; read again where it is a file.

        Of one from memory only the part that the model sees is left. InputUnreadable as of `patches`.
        """
        if self.path is not None:
            return _open_same(self.path, self.report.original_size, None, self._password)
        assert self._image is not None, "an image without a path keeps its pixels"
        return OpenedImage(self._image, self.name, self.view)

    def zoomed(self, place: ViewBox) -> ChatImage:
        """A part of it as an image of its own, cut from the pixels of the original.

        place: thousandths of what the model sees of this one; all pixels that it touches are taken. The part
        is as large as the image processor makes it, and bounded as this image is. InputUnreadable where the
        file is gone or another by now, and for a part too long and thin.
        """
        path, box = self.path if self.origin is None else self.origin.path, self.view.box_to_original(place)
        if path is not None:
            size = self.view.original_size
            return open_zoomed(ImageOrigin(path, box), size, self._processor, self._password)
        assert self._image is not None, "an image without a path keeps its pixels"
        left, top = self.view.crop[:2]
        corners = self.view.opened.box_to_original(place)
        inside = (corners[0] - left, corners[1] - top, corners[2] - left, corners[3] - top)
        whole = OpenedImage(self._image, _part_name(self.name, box), self.view)
        part = whole.cropped(whole_pixels(inside, self._image.size))
        return ChatImage(part, None, self._processor, ImageOrigin(None, box))

    def release(self) -> None:
        """Drop the patches: the engine's cache holds what the model needs of them. So it does of the pixels,
        which a file has."""
        self._patches = None
        if self.path is not None:
            self._image = None


ChatImageSource: TypeAlias = "ImageSource | OpenedImage | ImagePart | ChatImage"


def open_chat_images(
    sources: Iterable[ChatImageSource], processor: ImageProcessorConfig, context_size: int | None = None
) -> list[ChatImage]:
    """Open and measure images, several of a source with pages; InputUnreadable names the first bad one.

    context_size: in tokens, of which images with the detail "auto" share a half.
    """
    return [image for images in open_each(sources, processor, context_size) for image in images]


def open_each(
    sources: Iterable[ChatImageSource], processor: ImageProcessorConfig, context_size: int | None
) -> list[list[ChatImage]]:
    """The images of each source; the rest is as of `open_chat_images`."""
    opened = [_open_source(source, processor) for source in sources]
    read = [one for group in opened for one in group if isinstance(one, _ReadImage)]
    settled = iter(settle_details([one.wanted for one in read], context_size))

    def chat_image(one: _ReadImage | ChatImage) -> ChatImage:
        if isinstance(one, ChatImage):
            return one
        limited, notes = next(settled)
        return ChatImage(replace(one.opened, notes=one.opened.notes + notes), one.path, limited)

    return [[chat_image(one) for one in group] for group in opened]


def open_same_image(
    path: str,
    size: tuple[int, int],
    processor: ImageProcessorConfig,
    password: str | None = None,
    crop: CropBox | None = None,
) -> ChatImage:
    """The image at `path`, which had (width, height) `size`; InputUnreadable where it is not that one.

    crop: the part that was read; ValueError for one that does not lie in it.
    """
    return ChatImage(_open_same(path, size, crop, password), _absolute(path), processor)


def open_zoomed(
    origin: ImageOrigin,
    original_size: tuple[float, float],
    processor: ImageProcessorConfig,
    password: str | None = None,
) -> ChatImage:
    """The part of a file that `ChatImage.zoomed` gives; InputUnreadable where the original has another size.

    original_size: as of ImageView.
    """
    assert origin.path is not None, "a part of an image from memory is not opened again"
    _check_is_file(origin.path, original_size)
    opened = open_part(origin.path, origin.box, processor.max_pixels, password)
    if opened.view.original_size != tuple(original_size):
        raise _another_image(origin.path, original_size, [opened.view.original_size])
    return ChatImage(replace(opened, name=_part_name(origin.path, origin.box)), None, processor, origin)


def _part_name(name: str, box: ViewBox) -> str:
    return f"{name} [{', '.join(f'{side:.0f}' for side in box)}]"


def _open_same(path: str, size: tuple[int, int], crop: CropBox | None, password: str | None) -> OpenedImage:
    # The path may have come from a file of somebody else, who must not learn what another file holds.
    _check_is_file(path, size)
    opened = open_images(path, password=password, shows_content=False)
    if [one.image.size for one in opened] != [size]:
        raise _another_image(path, size, [one.image.size for one in opened])
    return opened[0] if crop is None else opened[0].cropped(crop)


def _check_is_file(path: str, size: tuple[float, float]) -> None:
    if split_page_request(path)[0] == STDIN_MARK:
        raise InputUnreadable(
            f"{path!r}: standard input, where a file of {size[0]} x {size[1]} pixels is needed",
            "what a pipe carried cannot be read again",
            "name the file of the image in the saved chat, or start a new chat",
        )


def _another_image(
    path: str, size: tuple[float, float], sizes: Sequence[tuple[float, float]]
) -> InputUnreadable:
    now = ", ".join(f"{width} x {height}" for width, height in sizes)
    return InputUnreadable(
        f"{path}: {size[0]} x {size[1]} pixels when it was asked about, {now} now",
        "the chat continues from this image, and another one would not match what was said about it",
        "restore the image, or start a new chat",
    )


class _ReadImage(NamedTuple):
    """An image before its size for the model is settled."""

    opened: OpenedImage
    path: str | None
    wanted: WantedImage


def _open_source(
    source: ChatImageSource, processor: ImageProcessorConfig
) -> list[_ReadImage] | list[ChatImage]:
    if isinstance(source, ChatImage):
        return [source]
    part = source if isinstance(source, ImagePart) else ImagePart(source)
    bounded = with_image_tokens(processor, part.image_tokens)
    opened = [part.source] if isinstance(part.source, OpenedImage) else open_images(part.source)
    if part.trim:
        opened = [trim_margins(one) for one in opened]
    may_be_path = _may_be_path(part.source)
    return [
        _ReadImage(
            one,
            _absolute(one.name) if may_be_path else None,
            WantedImage(one.name, one.view.cropped_size, part.detail, bounded),
        )
        for one in opened
    ]


def _may_be_path(source: ImageSource | OpenedImage) -> bool:
    if isinstance(source, OpenedImage):
        # Only its name is left to tell, and "image" stands for bytes; so a file must be there.
        return os.path.exists(source.name) or os.path.exists(source.name.rpartition(":")[0])  # noqa: PTH110
    return isinstance(source, str | os.PathLike) and os.fspath(source).partition(":")[0] != STDIN_MARK


def _absolute(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))  # noqa: PTH100, PTH111  (the page stays at its end)
