"""Parses page requests such as `invoice.pdf:1-3`, and chooses the pages of a PDF or TIFF to read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ernie_local.errors import InputUnreadable

if TYPE_CHECKING:
    from PIL import Image

    from ernie_local.media.image_view import ImageView

MAX_PAGES = 32  # a page takes some thousand tokens, so more pages fit no context
POINTS_PER_INCH = 72.0
_REQUEST = re.compile(r"(?P<path>.+):(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Pages `first` to `last` of a document, counted from 1, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """A page that was read. number: from 1. image: upright, RGB. view: all of it. notes: for the user."""

    number: int
    num_pages: int
    image: Image.Image
    view: ImageView
    notes: tuple[str, ...] = ()


def split_page_request(text: str) -> tuple[str, PageRequest | None]:
    """Split "invoice.pdf:1-3" or "invoice.pdf:2" into the path and the pages, None where it has none.

    A single letter before the colon is a Windows drive ("C:1"), so that is all path.
    """
    match = _REQUEST.fullmatch(text)
    if match is None or (len(match["path"]) == 1 and match["path"].isalpha()):
        return text, None
    first = int(match["first"])
    return match["path"], PageRequest(first, int(match["last"] or first))


def choose_pages(request: PageRequest | None, num_pages: int, name: str) -> range:
    """The numbers of the pages to read, from 1: those of the request, or all.

    InputUnreadable for pages that the document does not have, a backward range, and more than MAX_PAGES.
    """
    if num_pages < 1:
        raise InputUnreadable(
            f"{name}: has {num_pages} pages",
            "a document without a page shows nothing",
            "open it in a viewer and save it again",
        )
    asked = request or PageRequest(1, num_pages)
    if asked.first < 1 or asked.last < asked.first:
        raise InputUnreadable(
            f"{name}: pages {asked} cannot be read",
            "pages are counted from 1, and a range goes from the lower page to the higher",
            f"write {name}:1 or {name}:1-{min(num_pages, MAX_PAGES)}",
        )
    if asked.last > num_pages:
        raise InputUnreadable(
            f"{name}: page {asked.last} was asked for, but there are {num_pages}",
            f"the last page of this file is page {num_pages}",
            f"write {name}:{num_pages}, or leave the pages out to read all",
        )
    count = asked.last - asked.first + 1
    if count > MAX_PAGES:
        raise InputUnreadable(
            f"{name}: {count} pages, at most {MAX_PAGES} are read at once",
            "each page takes some thousand tokens of the model's context",
            f"choose pages: {name}:{asked.first}-{asked.first + MAX_PAGES - 1}",
        )
    return range(asked.first, asked.last + 1)
