"""Reads samples from a user's folder: images and documents, with the texts that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ernie_calibration.sample import Sample, SampleTurn
from ernie_calibration.turn_files import TEXT_SUFFIXES, read_turns
from ernie_local.errors import InputUnreadable
from ernie_local.media.formats import sniff_format
from ernie_local.media.open_image import open_images

# A file with such a name must be an image; any other file is skipped unless its content is one.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pdf")
_HEAD_BYTES = 1024  # all that sniff_format looks at


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image, a text about it, or both. turns: None where there is no text."""

    image: Path | None
    turns: tuple[SampleTurn, ...] | None
    name: str


def folder_samples(directory: Path, note: Callable[[str], None]) -> Iterator[Sample]:
    """A sample for each image of `directory` and each text without one, in the order of their names.

    A text belongs to the image of the same name: page.png, page.txt (or page.json; see turn_files). All
    pages of a document with a text are one sample; without a text each page is one. An image without text is
    a sample without turns. Subfolders, hidden files and other files are skipped. Calls `note` with each
    skipped file and the reason, and with what was changed in an image.

    InputUnreadable: at once for the folder and its texts; for an image when its turn comes.
    """
    images, texts = _sort_out(directory, note)
    entries = _pair(images, texts)
    if not entries:
        raise InputUnreadable(
            f"{directory}: holds 0 images and 0 texts",
            "there is nothing to calibrate on",
            "put images into it, each with its transcript in a .txt of the same name if you have one",
        )
    return _samples(entries, note)


def _sort_out(directory: Path, note: Callable[[str], None]) -> tuple[list[Path], list[Path]]:
    """The images and the texts."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise InputUnreadable(
            f"{directory}: cannot be read as a folder",
            f"the system says: {error.strerror or error}",
            "name a folder that holds images",
        ) from error
    images, texts = [], []
    for path in paths:
        reason = ""
        if path.name.startswith("."):
            reason = "a hidden file"
        elif path.is_dir():
            reason = "a folder; only files are read"
        elif path.suffix.lower() in TEXT_SUFFIXES:
            texts.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES or not (reason := _no_image(path)):
            images.append(path)
        if reason:
            note(f"left out: {path.name} ({reason})")
    return images, texts


def _no_image(path: Path) -> str:
    """Why a file with any other name is not an image; empty if it is one."""
    if not path.is_file():
        return "not a regular file"
    try:
        with path.open("rb") as file:
            sniff_format(file.read(_HEAD_BYTES), path.name)
    except InputUnreadable as error:
        return error.what.removeprefix(f"{path.name}: ")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _pair(images: list[Path], texts: list[Path]) -> list[_Entry]:
    """Pair texts with their images; InputUnreadable where it is not clear which belong together."""
    text_of: dict[str, Path] = {}
    for path in texts:
        if (other := text_of.setdefault(path.stem, path)) != path:
            raise _ambiguous(other, path, f"both describe {path.stem}", "delete one")
    image_of: dict[str, Path] = {}
    for path in images:
        if (other := image_of.setdefault(path.stem, path)) != path and path.stem in text_of:
            raise _ambiguous(other, path, f"{text_of[path.stem].name} could belong to either", "rename one")
    entries = []
    for path in images:
        text = text_of.get(path.stem)
        entries.append(_Entry(path, read_turns(text, of_image=True) if text else None, path.name))
    alone = (path for path in texts if path.stem not in image_of)
    entries += [_Entry(None, read_turns(path, of_image=False), path.name) for path in alone]
    return sorted(entries, key=lambda entry: entry.name)


def _ambiguous(first: Path, second: Path, why: str, hint: str) -> InputUnreadable:
    return InputUnreadable(f"{first} and {second.name}: 2 files with one name, 1 is needed", why, hint)


def _samples(entries: list[_Entry], note: Callable[[str], None]) -> Iterator[Sample]:
    for entry in entries:
        opened = open_images(entry.image) if entry.image else []
        for page in opened:
            for line in page.notes:
                note(f"{page.name}: {line}")
        if entry.turns is not None:
            yield Sample(f"folder/{entry.name}", tuple(page.image for page in opened), entry.turns)
        else:
            for number, page in enumerate(opened, 1):
                name = entry.name if len(opened) == 1 else f"{entry.name}:{number}"
                yield Sample(f"folder/{name}", (page.image,), ())
