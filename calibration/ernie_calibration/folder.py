"""Reads samples from a user's folder: images and documents, with the texts that belong to them.

A text is a transcript (.txt), or the turns of a conversation (.json).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ernie_calibration.images.forms import READ_QUESTIONS
from ernie_calibration.sample import Sample, SampleTurn
from ernie_local.errors import InputUnreadable, ModelUnusable
from ernie_local.files import open_plain, read_plain
from ernie_local.media.formats import SNIFFED_BYTES, sniff_format
from ernie_local.media.open_image import open_images
from ernie_local.strict_json import read_json_object, show

TEXT_SUFFIXES = (".txt", ".json")
# A file with such a name must be an image; any other file is skipped unless its content is one.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pdf")
MAX_TEXT_BYTES = 1 << 20
# A text without an image answers this.
WRITE_QUESTION = "Write a text."
_HINT = 'write {"turns": [{"question": "...", "answer": "..."}]}'

# Of one sample: its image, and the turns of its text; None for what there is not.
_Entry = tuple[Path | None, tuple[SampleTurn, ...] | None]


def folder_samples(directory: Path, note: Callable[[str], None]) -> Iterator[Sample]:
    """A sample for each image of `directory` and each text without one, in the order of their names.

    A text belongs to the image of the same name: page.png, page.txt or page.json. All pages of a document
    with a text are one sample; without a text each page is one. An image without text is a sample without
    turns. Subfolders, hidden files and other files are skipped. Calls `note` with each skipped file and the
    reason, and with what was changed in an image.

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
    try:
        with open_plain(path) as file:
            sniff_format(file.read(SNIFFED_BYTES), path.name)
    except InputUnreadable as error:
        return error.what.removeprefix(f"{path.name}: ")
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return ""


def _pair(images: list[Path], texts: list[Path]) -> dict[str, _Entry]:
    """Entries by name, in order; InputUnreadable where it is not clear which text belongs to which image."""
    text_of: dict[str, Path] = {}
    for path in texts:
        if (other := text_of.setdefault(path.stem, path)) != path:
            raise _ambiguous(other, path, f"both describe {path.stem}", "delete one")
    image_of: dict[str, Path] = {}
    for path in images:
        if (other := image_of.setdefault(path.stem, path)) != path and path.stem in text_of:
            raise _ambiguous(other, path, f"{text_of[path.stem].name} could belong to either", "rename one")
    entries: dict[str, _Entry] = {}
    for path in images:
        text = text_of.get(path.stem)
        entries[path.name] = path, _read_turns(text, of_image=True) if text else None
    for path in texts:
        if path.stem not in image_of:
            entries[path.name] = None, _read_turns(path, of_image=False)
    return dict(sorted(entries.items()))


def _ambiguous(first: Path, second: Path, why: str, hint: str) -> InputUnreadable:
    return InputUnreadable(f"{first} and {second.name}: 2 files with one name, 1 is needed", why, hint)


def _samples(entries: dict[str, _Entry], note: Callable[[str], None]) -> Iterator[Sample]:
    for name, (path, turns) in entries.items():
        pages = open_images(path) if path else []
        for page in pages:
            for line in page.notes:
                note(f"{page.name}: {line}")
        images = tuple(page.image for page in pages)
        if turns is not None or len(pages) == 1:
            yield Sample(f"folder/{name}", images, turns or ())
        else:
            for number, image in enumerate(images, 1):
                yield Sample(f"folder/{name}:{number}", (image,), ())


def _read_turns(path: Path, *, of_image: bool) -> tuple[SampleTurn, ...]:
    """The turns that `path` holds, at least one; InputUnreadable for a file in any other form.

    .txt: one turn, whose answer is the whole text: the transcript of the image, or a text to be written.
    .json: `{"turns": [{"question": ..., "answer": ...}]}` and no other key.
    """
    if path.suffix.lower() == ".json":
        return _json_turns(path)
    text = _read_text(path).strip()
    if not text:
        raise InputUnreadable(
            f"{path}: holds 0 characters of text", "an answer cannot be empty", "write it, or delete the file"
        )
    question = READ_QUESTIONS[0] if of_image else WRITE_QUESTION
    return (SampleTurn(question, text, "transcript" if of_image else "text"),)


def _read_text(path: Path) -> str:
    try:
        data = read_plain(path, MAX_TEXT_BYTES)
    except OSError as error:
        raise InputUnreadable(
            f"{path}: cannot be read",
            f"a text that fits the model's context is needed here: {error.strerror or error}",
            "check its permissions, or split it into several files",
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputUnreadable(
            f"{path}: byte {error.start + 1} of {len(data)} is 0x{data[error.start]:02x}, which is not UTF-8",
            "transcripts are read as UTF-8",
            f"convert it: iconv -t utf-8 {path.name}",
        ) from error


def _json_turns(path: Path) -> tuple[SampleTurn, ...]:
    try:
        given = read_json_object(path, MAX_TEXT_BYTES)
    except ModelUnusable as error:  # the reader is written for files of models
        raise InputUnreadable(error.what, error.why, _HINT) from error
    unknown = sorted(set(given) - {"turns"})
    if unknown:
        raise _wrong(path, f"the key {show(unknown[0])}", "turns is the only known key")
    turns = given.get("turns")
    if not isinstance(turns, list) or not turns:
        raise _wrong(path, f"turns is {show(turns)}", "a list of at least 1 turn is needed")
    return tuple(_json_turn(path, number, turn) for number, turn in enumerate(turns, 1))


def _json_turn(path: Path, number: int, turn: object) -> SampleTurn:
    if not isinstance(turn, dict) or set(turn) != {"question", "answer"}:
        found = ", ".join(sorted(map(show, turn))) if isinstance(turn, dict) else show(turn)
        what = f"turn {number} has {found or 'no keys'}"
        raise _wrong(path, what, "a turn has the keys question and answer")
    for key in ("question", "answer"):
        text = turn[key]
        if not isinstance(text, str) or not text.strip():
            what = f"the {key} of turn {number} is {show(text)}"
            raise _wrong(path, what, "question and answer are texts that are not empty")
    return SampleTurn(turn["question"], turn["answer"], "given")


def _wrong(path: Path, what: str, why: str) -> InputUnreadable:
    return InputUnreadable(f"{path}: {what}", why, _HINT)
