"""Pictures of a question before the model sees them: opened, measured, and reported to the person.

Owns the line that says what the model will see of a picture. Knows nothing of files' formats (media does)
and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ernie_cli.console import Console

if TYPE_CHECKING:
    from ernie_local.media.open_image import OpenedImage
    from ernie_local.media.processor import ImageProcessorConfig

# A picture that kept less than this share of its side length has lost three quarters of its pixels.
_STRONGLY_SHRUNK = 0.5


@dataclass(frozen=True, slots=True)
class PictureReport:
    """A picture and what is left of it; sizes are (width, height) in pixels."""

    name: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    tokens: int

    @property
    def scale(self) -> float:
        """How much of its side length the picture keeps: the root of the ratio of the areas."""
        (width, height), (new_width, new_height) = self.original_size, self.resized_size
        return float((new_width * new_height / (width * height)) ** 0.5)

    def line(self) -> str:
        """`invoice.png 2480x3508 -> 1848x2604, 6138 tokens (0.74x)`."""
        (width, height), (new_width, new_height) = self.original_size, self.resized_size
        return (
            f"{self.name} {width}x{height} -> {new_width}x{new_height}, "
            f"{self.tokens} tokens ({self.scale:.2f}x)"
        )


def open_pictures(sources: Sequence[str], stdin: BinaryIO | None = None) -> list[OpenedImage]:
    """Every picture that `sources` name, opened now; raises InputUnreadable for one that is none."""
    if not sources:
        return []
    from ernie_local.media.open_image import open_images

    return [opened for source in sources for opened in open_images(source, stdin=stdin)]


def measure(pictures: Sequence[OpenedImage], processor: ImageProcessorConfig) -> list[PictureReport]:
    """What the processor of a model will make of the pictures, without making it."""
    from ernie_local.media.processor import smart_resize

    reports = []
    for picture in pictures:
        width, height = picture.image.size
        new_height, new_width = smart_resize(
            height, width, processor.factor, processor.min_pixels, processor.max_pixels
        )
        tokens = (new_height // processor.factor) * (new_width // processor.factor)
        reports.append(PictureReport(picture.name, (width, height), (new_width, new_height), tokens))
    return reports


def show_reports(reports: Sequence[PictureReport], pictures: Sequence[OpenedImage], console: Console) -> None:
    """Say what the model will see of each picture, and warn where much of it is lost."""
    for report, picture in zip(reports, pictures, strict=True):
        console.note(report.line())
        for note in picture.notes:
            console.warn(f"{picture.name}: {note}")
        if report.scale < _STRONGLY_SHRUNK:
            console.warn(
                f"{report.name} keeps {report.scale:.0%} of its side length: small print may be unreadable; "
                "crop it to the part that matters"
            )


def split_paths(text: str) -> list[str]:
    """The paths in what a person typed: one with blanks as it stands if it is there, else quoted words."""
    import shlex

    whole = text.strip()
    try:
        paths = [whole] if whole and Path(whole).expanduser().exists() else shlex.split(whole)
    except ValueError:  # a lone quote is part of the name
        paths = [whole]
    return [str(Path(path).expanduser()) for path in paths]
