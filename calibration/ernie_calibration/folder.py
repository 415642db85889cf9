"""Samples from a folder of the user's: pictures and documents, with what is known about them beside them.

Owns which files belong together and which are left out. Knows neither the formats of pictures (media does)
nor those of text (turn_files does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ernie_calibration.sample import Sample, Turn
from ernie_calibration.turn_files import TEXT_SUFFIXES, read_turns
from ernie_local.errors import InputUnreadable
from ernie_local.media.formats import sniff_format
from ernie_local.media.open_image import open_images

# A file called so has to be a picture; any other is looked into, and left out if it holds none.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pdf")
_HEAD_BYTES = 1024  # all that sniff_format looks at


@dataclass(frozen=True, slots=True)
class _Entry:
    """A picture, what was written about it, or both. turns: None where no text is."""

    picture: Path | None
    turns: tuple[Turn, ...] | None
    name: str


def folder_samples(directory: Path, note: Callable[[str], None]) -> Iterator[Sample]:
    """A sample for each picture of `directory` and each text without one, in the order of their names.

    A text belongs to the picture of the same name: page.png, page.txt (or page.json; see turn_files). All
    pages of a document are one sample with its text, and a sample each without. A picture without text is a
    sample without turns. Folders inside, hidden files and files that are neither are left out; `note` is told
    each with the reason, and what was changed in a picture.

    InputUnreadable, at once for the folder and its texts, and when its turn comes for a picture that cannot
    be read.
    """
    pictures, texts = _sort_out(directory, note)
    entries = _pair(pictures, texts)
    if not entries:
        raise InputUnreadable(
            f"{directory}: holds 0 pictures and 0 texts",
            "there is nothing in it to calibrate on",
            "put pictures into it, each with its transcript in a .txt of the same name if there is one",
        )
    return _samples(entries, note)


def _sort_out(directory: Path, note: Callable[[str], None]) -> tuple[list[Path], list[Path]]:
    """The pictures and the texts."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise InputUnreadable(
            f"{directory}: cannot be read as a folder",
            f"the system says: {error.strerror or error}",
            "give a folder with pictures in it",
        ) from error
    pictures, texts = [], []
    for path in paths:
        reason = ""
        if path.name.startswith("."):
            reason = "a hidden file"
        elif path.is_dir():
            reason = "a folder; only files are read"
        elif path.suffix.lower() in TEXT_SUFFIXES:
            texts.append(path)
        elif path.suffix.lower() in PICTURE_SUFFIXES or not (reason := _no_picture(path)):
            pictures.append(path)
        if reason:
            note(f"left out: {path.name} ({reason})")
    return pictures, texts


def _no_picture(path: Path) -> str:
    """Why a file of unknown name is no picture; empty if it is one."""
    if not path.is_file():
        return "not a plain file"
    try:
        with path.open("rb") as file:
            sniff_format(file.read(_HEAD_BYTES), path.name)
    except InputUnreadable as error:
        return error.what.removeprefix(f"{path.name}: ")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _pair(pictures: list[Path], texts: list[Path]) -> list[_Entry]:
    """Texts with their pictures; InputUnreadable where it is not clear what belongs together."""
    text_of: dict[str, Path] = {}
    for path in texts:
        if (other := text_of.setdefault(path.stem, path)) != path:
            raise _ambiguous(other, path, f"both say what {path.stem} is", "delete one")
    picture_of: dict[str, Path] = {}
    for path in pictures:
        if (other := picture_of.setdefault(path.stem, path)) != path and path.stem in text_of:
            raise _ambiguous(other, path, f"{text_of[path.stem].name} could belong to either", "rename one")
    entries = []
    for path in pictures:
        text = text_of.get(path.stem)
        entries.append(_Entry(path, read_turns(text, of_picture=True) if text else None, path.name))
    alone = (path for path in texts if path.stem not in picture_of)
    entries += [_Entry(None, read_turns(path, of_picture=False), path.name) for path in alone]
    return sorted(entries, key=lambda entry: entry.name)


def _ambiguous(first: Path, second: Path, why: str, hint: str) -> InputUnreadable:
    return InputUnreadable(f"{first} and {second.name}: 2 files of one name, 1 is needed", why, hint)


def _samples(entries: list[_Entry], note: Callable[[str], None]) -> Iterator[Sample]:
    for entry in entries:
        opened = open_images(entry.picture) if entry.picture else []
        for page in opened:
            for line in page.notes:
                note(f"{page.name}: {line}")
        if entry.turns is not None:
            yield Sample(f"folder/{entry.name}", tuple(page.image for page in opened), entry.turns)
        else:
            for number, page in enumerate(opened, 1):
                name = entry.name if len(opened) == 1 else f"{entry.name}:{number}"
                yield Sample(f"folder/{name}", (page.image,), ())
