"""One image of a chat: where it came from, what the model sees of it, its patches while they are needed.

Owns opening, preparing and opening again. Knows nothing of the conversation around it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media.open_image import STDIN_MARK, ImageSource, OpenedImage, open_images
from ernie_local.media.patches import Patches
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.tokens import Grid
from ernie_local.session.answer import ImageReport

ChatImageSource: TypeAlias = "ImageSource | OpenedImage"


@dataclass(eq=False, slots=True)
class ChatImage:
    """An image and its size in tokens. Its patches are large, and dropped once the engine has taken them.

    path: absolute, with the page ("/scans/a.pdf:2"), or None for an image that came from memory. Each
    object is an image of its own: two of the same file are never taken for one another in the cache.
    """

    report: ImageReport
    grid: Grid
    path: str | None
    _image: Image.Image | None
    _config: ImageProcessorConfig
    _patches: Patches | None = field(default=None, repr=False)

    def patches(self) -> Patches:
        """The patches, made again from the file where they were dropped.

        InputUnreadable where the file is gone or holds another image by now.
        """
        if self._patches is None:
            image = self._image
            if image is None:
                assert self.path is not None, "an image without a path keeps its pixels"
                image = _open_same(self.path, self.report.original_size).image
            self._patches = image_to_patches(image, self._config)
        return self._patches

    def release(self) -> None:
        """Drop the patches: the engine's cache holds what the model needs of them."""
        self._patches = None


def open_chat_images(sources: Iterable[ChatImageSource], config: ImageProcessorConfig) -> list[ChatImage]:
    """Open and prepare images, several of a source with pages; InputUnreadable names the first bad one."""
    return [image for source in sources for image in _open_source(source, config)]


def open_same_image(path: str, size: tuple[int, int], config: ImageProcessorConfig) -> ChatImage:
    """The image at `path`, which had (width, height) `size`; InputUnreadable where it is not that one."""
    return _prepare(_open_same(path, size), True, config)


def _open_same(path: str, size: tuple[int, int]) -> OpenedImage:
    opened = open_images(path)
    if [one.image.size for one in opened] != [size]:
        now = ", ".join(f"{one.image.width} x {one.image.height}" for one in opened)
        raise InputUnreadable(
            f"{path}: {size[0]} x {size[1]} pixels when it was asked about, {now} now",
            "the chat goes on from this image, and another one would not fit what was said about it",
            "put the image back in its place, or start a new chat",
        )
    return opened[0]


def _open_source(source: ChatImageSource, config: ImageProcessorConfig) -> list[ChatImage]:
    opened = [source] if isinstance(source, OpenedImage) else open_images(source)
    return [_prepare(one, _may_be_path(source), config) for one in opened]


def _prepare(opened: OpenedImage, may_be_path: bool, config: ImageProcessorConfig) -> ChatImage:
    patches = image_to_patches(opened.image, config)
    report = ImageReport(
        opened.name, patches.original_size, patches.resized_size, patches.num_tokens, opened.notes
    )
    path = _absolute(opened.name) if may_be_path else None
    return ChatImage(report, patches.grid, path, None if path else opened.image, config, patches)


def _may_be_path(source: ChatImageSource) -> bool:
    if isinstance(source, OpenedImage):
        # Only its name is left to tell, and "image" stands for bytes; so a file must be there.
        return os.path.exists(source.name) or os.path.exists(source.name.rpartition(":")[0])  # noqa: PTH110
    return isinstance(source, str | os.PathLike) and os.fspath(source).partition(":")[0] != STDIN_MARK


def _absolute(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))  # noqa: PTH100, PTH111  (the page stays at its end)
