"""Finds the files that a folder or a pattern stands for, where a user names images."""

from __future__ import annotations

import glob
from pathlib import Path

from ernie_cli.console import Console
from ernie_local.errors import InputUnreadable
from ernie_local.file_names import by_number, is_image_name
from ernie_local.media.pages import MAX_PAGES, split_page_request


def paths_of_source(source: str, console: Console | None = None) -> list[str]:
    """The files of `source`, in the order of their names and numbers; `source` itself where it is one.

    A folder stands for the images and PDFs in it, of which the rest is told; a pattern for what it matches.
    InputUnreadable where there is none, or more than any context holds.
    """
    path, request = split_page_request(source)
    if _is_there(source):
        found, pages = [source], ""
        if Path(source).expanduser().is_dir():
            found = _images_in(Path(source).expanduser(), console)
    elif glob.has_magic(path) and not _is_there(path):
        found = [name for name in glob.glob(str(Path(path).expanduser())) if Path(name).is_file()]  # noqa: PTH207
        pages = "" if request is None else f":{request}"
    else:
        return [source]
    if not found:
        raise InputUnreadable(
            f"{source}: 0 images",
            "no file of that kind is there",
            "name a file, a folder of images, or a pattern in quotes such as 'scans/*.png'",
        )
    if len(found) > MAX_PAGES:
        raise InputUnreadable(
            f"{source}: {len(found)} images, at most {MAX_PAGES} are read at once",
            "each image takes some hundred to some thousand tokens of the model's context",
            "a narrower pattern, such as 'scans/page-0*.png'",
        )
    return [name + pages for name in sorted(found, key=by_number)]


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _images_in(folder: Path, console: Console | None) -> list[str]:
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise InputUnreadable(
            f"{folder}: cannot be read",
            f"the system says: {error.strerror}",
            "check the rights to read the folder",
        ) from error
    images = [path for path in files if is_image_name(path.name)]
    others = sorted(path.name for path in files if path not in images)
    if others and images and console is not None:
        console.note(f"{folder}: left out {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}")
    return [str(path) for path in images]
