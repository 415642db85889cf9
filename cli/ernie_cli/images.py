"""Opens the images that a user names, and tells what the model will see of them. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ernie_cli.console import Console
from ernie_cli.failures import spell_options
from ernie_cli.videos import show_video
from ernie_local.errors import UsageError
from ernie_local.escapes import printable_line
from ernie_local.media.image_size import ImageReport

if TYPE_CHECKING:
    from ernie_local.media.open_image import OpenedImage
    from ernie_local.session import ChatMedia

# An image that kept less than this share of its side length has lost three quarters of its pixels.
_STRONGLY_SHRUNK = 0.5


def open_given_images(
    sources: Sequence[str],
    stdin: BinaryIO | None = None,
    console: Console | None = None,
    password: str | None = None,
) -> list[OpenedImage]:
    """Every image that `sources` name, opened now: files, folders, and patterns such as scans/*.png.

    Raises UsageError for an empty name, InputUnreadable for what is no image. console: is told which files
    of a folder are no images. password: of encrypted PDFs.
    """
    if not all(map(str.strip, sources)):
        raise UsageError(
            "--image '' names no file (0 characters)",
            "an image is a file, pages of one, or - for stdin",
            "--image invoice.png, or remove --image",
        )
    if not sources:
        return []
    from ernie_cli.image_paths import paths_of_source
    from ernie_local.media.open_image import open_images

    return [
        opened
        for source in sources
        for path in paths_of_source(source, console)
        for opened in open_images(path, stdin=stdin, password=password)
    ]


def show_reports(images: Sequence[ChatMedia], console: Console) -> None:
    """Say what the model will see of each image and video, and warn where much of an image is lost."""
    for image in images:
        report = image.report
        if not isinstance(report, ImageReport):
            show_video(report, console)
            continue
        name = printable_line(report.name)
        console.note(f"{report.name} {shrink_text(report)}, {token_text(report)} ({report.scale:.2f}x)")
        for note in report.notes:
            console.warn(f"{name}: {spell_options(note)}")
        if report.scale < _STRONGLY_SHRUNK:
            console.warn(
                f"{name} keeps {report.scale:.0%} of its side length: small print may be unreadable; "
                "crop it to the part that matters"
            )


def shrink_text(report: ImageReport) -> str:
    """The sizes of an image in pixels: as it was, without cut margins, as the model sees it."""
    sizes = [f"{width}x{height}" for width, height in (report.original_size, report.resized_size)]
    if report.crop is not None:
        width, height = report.read_size
        sizes[0] = f"trimmed {sizes[0]} to {width}x{height}"
    return " -> ".join(sizes)


def token_text(report: ImageReport) -> str:
    """The tokens of an image, with their bound where the user has set one."""
    bound = "" if report.max_tokens is None else f" of at most {report.max_tokens}"
    return f"{report.tokens}{bound} tokens"


def split_paths(text: str) -> list[str]:
    """The paths in what a person typed: one with blanks as it stands if it is there, else quoted words."""
    whole = text.strip()
    try:
        paths = [whole] if whole and Path(whole).expanduser().exists() else shlex.split(whole)
    except ValueError:  # a lone quote is part of the name
        paths = [whole]
    return [path and str(Path(path).expanduser()) for path in paths]
