"""Reads chosen frames of a moving GIF or WebP by Pillow, as `video_file` does of a video."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Generator, Sequence
from itertools import accumulate
from typing import BinaryIO

from PIL import GifImagePlugin, Image, ImageFile, WebPImagePlugin

from ernie_local.errors import InputUnreadable
from ernie_local.media.decode import check_size, reporting_damage
from ernie_local.media.video_size import check_reading_memory
from ernie_local.progress import Pause

_DEFAULT_MILLISECONDS = 100  # what browsers take where a file says 0
MOST_ANIMATION_FRAMES = 100_000
# Of all its frames, each of which is drawn in full whether it is seen or not: a file of 20 bytes a frame may
# ask for hours.
_MOST_PIXELS = 2 << 30


class _GifFile(GifImagePlugin.GifImageFile):
    """A GIF whose frames are not counted without end: the file does not say how many it has."""

    pause: Pause | None = None

    def _seek(self, frame: int, update_image: bool = True) -> None:
        if self.pause is not None:
            self.pause()
        if frame > MOST_ANIMATION_FRAMES:
            raise EOFError("too many frames")
        super()._seek(frame, update_image)


_DECODERS = {"GIF": _GifFile, "WebP": WebPImagePlugin.WebPImageFile}
MOVING_KINDS = tuple(_DECODERS)


def moves(file: BinaryIO, kind: str, name: str) -> bool:
    """Whether a GIF or WebP has more than one frame; InputUnreadable for a damaged one."""
    with reporting_damage(name, kind, None), _DECODERS[kind](file) as image:
        return bool(getattr(image, "is_animated", False))


class Animation:
    """A moving image that is open; attributes as of VideoFile.

    Its frames stay for different times. It is read as a video with as many frames that all stay for their
    average, each of which shows what the moving image shows at that time.
    """

    def __init__(self, file: BinaryIO, kind: str, name: str, pause: Pause | None = None) -> None:
        """pause: as of VideoFile, between frames.

        InputUnreadable for a damaged file, one that does not move, and one of too many pixels.
        """
        self.name, self._kind, self._pause = name, kind, pause
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        with reporting_damage(name, kind, None):
            self._image: ImageFile.ImageFile = _DECODERS[kind](file)
            if isinstance(self._image, _GifFile):
                self._image.pause = pause
            check_size(*self._image.size, name)
            check_reading_memory(*self._image.size, num_bytes, name)
            self.num_frames = int(getattr(self._image, "n_frames", 1))
            if not 2 <= self.num_frames <= MOST_ANIMATION_FRAMES:
                more = " or more" if self.num_frames > MOST_ANIMATION_FRAMES else ""
                raise InputUnreadable(
                    f"{name}: a {kind} image of {self.num_frames} frames{more}, 2 to "
                    f"{MOST_ANIMATION_FRAMES} are possible",
                    "an image that does not move is read in more detail as an image",
                    "give it as an image",
                )
            width, height = self._image.size
            if self.num_frames * width * height > _MOST_PIXELS:
                raise InputUnreadable(
                    f"{name}: {self.num_frames} frames of {width} x {height} pixels, "
                    f"{_MOST_PIXELS // (width * height)} of that size are possible",
                    f"every frame of a {kind} image is drawn before its length is known",
                    "convert it to a video: ffmpeg -i in.gif -c:v libx264 out.mp4",
                )
            durations = [self._duration(index) for index in range(self.num_frames)]
        self._ends = list(accumulate(durations))
        self.fps = 1000 * self.num_frames / self._ends[-1]
        self.size = self._image.size
        self.notes: tuple[str, ...] = ()

    def __enter__(self) -> Animation:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()

    def read(self, indices: Sequence[int]) -> Generator[tuple[int, Image.Image], None, None]:
        """As of VideoFile: RGB images of these ascending indices."""
        first = 0
        for index in indices:
            time = index * self._ends[-1] / self.num_frames
            with reporting_damage(self.name, self._kind, None):
                wanted = min(bisect_right(self._ends, time), self.num_frames - 1)
                # Each is drawn on the one before.
                for one in range(first, wanted + 1):
                    self._draw(one)
                first = wanted
                shown = self._image.convert("RGBA")
            flat = Image.new("RGB", shown.size, "white")
            flat.paste(shown, mask=shown.getchannel("A"))
            yield index, flat

    def _duration(self, index: int) -> int:
        """Milliseconds for which a frame stays."""
        self._draw(index)
        return int(self._image.info.get("duration") or 0) or _DEFAULT_MILLISECONDS

    def _draw(self, index: int) -> None:
        if self._pause is not None:
            self._pause()
        self._image.seek(index)
        if self._kind == "WebP":  # which tells how long a frame stays when it has been decoded
            self._image.load()
