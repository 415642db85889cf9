"""Writes records as one HTML file for people who check them: image beside fields, what is least sure first.

The file needs nothing from elsewhere. Names, values and errors come from strangers and are escaped; a policy
in the page lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from ernie_local.errors import DoesNotFit, InputUnreadable
from ernie_local.escapes import printable, printable_line
from ernie_local.extraction.documents import VIDEO, document_kind
from ernie_local.extraction.paths import leaves
from ernie_local.extraction.record import Record
from ernie_local.extraction.videos import sheet_of_video
from ernie_local.file_names import leads_below
from ernie_local.files import shared_file
from ernie_local.media.image_view import ImageView
from ernie_local.media.open_image import open_images
from ernie_local.media.pages import PageRequest
from ernie_local.sizes import format_bytes

MOST_DOCUMENTS, MOST_IMAGE_BYTES = 2000, 64 << 20
_LONGEST_SIDE, _JPEG_QUALITY = 1200, 80  # of an image in the page
_MOST_FIELDS, _MOST_VALUE_CHARACTERS = 300, 2000  # of one document


@dataclass(frozen=True, slots=True)
class WrittenPage:
    """What a page shows. notes: what had to be left out."""

    path: Path
    num_documents: int
    num_images: int
    notes: tuple[str, ...] = ()


def write_review_page(
    path: Path,
    records: Iterable[Record],
    folder: Path,
    *,
    password: str | None = None,
    most_documents: int = MOST_DOCUMENTS,
    most_image_bytes: int = MOST_IMAGE_BYTES,
) -> WrittenPage:
    """Write the page to `path`, whole or not at all.

    folder: from which the files of records count; their images are opened now, shrunk, and put into the page
    until they have `most_image_bytes`. password: of encrypted PDFs. Documents whose checks fail or that have
    values to review come first, then those with errors, then the others; within each, the least sure first.
    Those beyond `most_documents` are left out, and the page says so. ErnieLocalError where it cannot be
    written.
    """
    counts = {"review": 0, "error": 0, "": 0}

    def counted() -> Iterator[tuple[tuple[int, float], int, Record]]:
        for number, record in enumerate(records):
            counts[_kind(record)] += 1
            yield _urgency(record), number, record

    chosen = [record for *_, record in nsmallest(most_documents, counted())]
    album = _Album(folder, password, most_image_bytes)
    num_all = sum(counts.values())
    notes = []
    if num_all > len(chosen):
        notes.append(
            f"{num_all - len(chosen)} of {num_all} documents are left out: the page shows {len(chosen)}"
        )
    with (
        shared_file(path, "a page") as new,
        new.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        package = files("ernie_local.extraction")
        script = package.joinpath("review_page.js").read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        head, tail = package.joinpath("review_page.html").read_text(encoding="utf-8").split("{documents}")
        shown = {name: sum(_kind(record) == name for record in chosen) for name in counts}
        for name, value in {
            "script_hash": digest,
            "title": f"{path.stem}: {len(chosen)} document{'s' * (len(chosen) != 1)}",
            "num_all": len(chosen),
            "num_review": shown["review"],
            "num_errors": shown["error"],
            "notes": "",
        }.items():
            head = head.replace(f"{{{name}}}", _text(str(value)))
        file.write(head)
        file.writelines(_article(record, album) for record in chosen)
        if album.num_left_out:
            notes.append(
                f"{album.num_left_out} images are left out: those in the page take "
                f"{format_bytes(album.num_bytes)}, at most {format_bytes(most_image_bytes)}"
            )
        file.writelines(f'<p class="note">{_text(note)}</p>\n' for note in notes)
        file.write(tail.replace("{script}", script))
    return WrittenPage(path, len(chosen), album.num_images, tuple(notes))


class _Album:
    """Images of documents as texts for a page, until they take too much."""

    def __init__(self, folder: Path, password: str | None, most_bytes: int) -> None:
        self._folder, self._password, self._most_bytes = folder, password, most_bytes
        self.num_bytes = self.num_images = self.num_left_out = 0

    def image(self, record: Record) -> tuple[str, ImageView | None]:
        """Its address in the page with the view of what it shows; else why there is none, and None.

        Of a video, frames of it are shown.
        """
        if self.num_bytes >= self._most_bytes:
            self.num_left_out += 1
            return "the image is left out, as the page would grow too large", None
        if not leads_below(record.file):
            return "the file lies outside of the folder that was read", None
        path, page = self._folder / record.file, PageRequest(record.page or 1, record.page or 1)
        try:
            if document_kind(path) == VIDEO:
                image = sheet_of_video(path)
                view = ImageView.whole(image.size)
            else:
                opened = open_images(path, pages=page, password=self._password)[0]
                image, view = opened.image, opened.view
        except (DoesNotFit, InputUnreadable) as error:
            return error.what, None
        data = _to_jpeg(image)
        self.num_bytes += len(data)
        self.num_images += 1
        return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", view


def _to_jpeg(image: Image.Image) -> bytes:
    image = image.copy()
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()


def _kind(record: Record) -> str:
    if record.error is not None:
        return "error"
    return "review" if record.review or record.failed_checks else ""


def _urgency(record: Record) -> tuple[int, float]:
    order = ("review", "error", "").index(_kind(record))
    return order, min(record.confidence.values(), default=1.0)


def _article(record: Record, album: _Album) -> str:
    address, view = album.image(record)
    page = "" if record.page is None else f" <small>page {record.page}</small>"
    rows, boxes = _rows(record), ""
    if view is not None:
        boxes = "".join(_boxes(record, view))
        shown = f'<div class="image"><img src="{address}" alt="" loading="lazy">{boxes}</div>'
    else:
        shown = f'<div class="none">{_text(address)}</div>'
    told = [f"<p><code>{_text(check)}</code> does not hold</p>" for check in record.failed_checks]
    bad = f'<div class="bad"><b>checks failed</b>{"".join(told)}</div>' if told else ""
    bad += "".join(f"<p>{_text(note)}</p>" for note in record.notes)
    if record.error is not None:
        error = record.error
        bad += (
            f'<div class="bad"><b>{_text(error.what)}</b><p>{_text(error.why)}</p>'
            f"<p>try: {_text(error.hint)}</p></div>"
        )
    return (
        f'<article data-kind="{_kind(record)}"><h2>{_text(record.file)}{page}</h2>\n'
        f'<div class="sides">{shown}\n<div class="fields">{bad}'
        f"<table><tbody>{''.join(rows)}</tbody></table></div></div>"
        "</article>\n"
    )


def _rows(record: Record) -> Iterator[str]:
    """A row for each value: those to review first, the least sure at the top, then the others in order."""
    review = frozenset(record.review)
    values = list(leaves(dict(record.fields))) if record.fields else []
    values.sort(key=lambda one: (0, record.confidence.get(one[0], 0.0)) if one[0] in review else (1, 0.0))
    for path, value in values[:_MOST_FIELDS]:
        kinds = " ".join(
            kind for kind, has in (("mark", path in review), ("has-box", path in record.boxes)) if has
        )
        share = record.confidence.get(path)
        sure = "" if share is None else f"{int(share * 100)} %"
        yield (
            f'<tr class="{kinds}" data-field="{_text(path)}"><td>{_text(path)}</td>'
            f'<td class="value">{_value(value)}</td><td>{sure}</td></tr>'
        )
    if len(values) > _MOST_FIELDS:
        yield f'<tr><td colspan="3" class="empty">{len(values) - _MOST_FIELDS} more values</td></tr>'


def _value(value: Any) -> str:
    if value is None or value == "":
        return f'<span class="empty">{"null" if value is None else "empty text"}</span>'
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > _MOST_VALUE_CHARACTERS:
        text = f"{text[:_MOST_VALUE_CHARACTERS]}... ({len(text)} characters)"
    return escape(printable(text))


def _boxes(record: Record, view: ImageView) -> Iterator[str]:
    width, height = view.opened_size
    # The largest first, so that a small one within it can be pointed at.
    sizes = {path: (box[2] - box[0]) * (box[3] - box[1]) for path, box in record.boxes.items()}
    for path in sorted(sizes, key=lambda one: -sizes[one])[:_MOST_FIELDS]:
        left, top, right, bottom = view.opened.box_to_original(view.box_from_original(record.boxes[path]))
        place = (
            f"left:{left / width:.3%};top:{top / height:.3%};"
            f"width:{(right - left) / width:.3%};height:{(bottom - top) / height:.3%}"
        )
        mark = " mark" if path in record.review else ""
        name = _text(path)
        yield (
            f'<button class="box{mark}" style="{place}" data-field="{name}" aria-label="{name}">'
            f"<span>{name}</span></button>"
        )


def _text(text: str) -> str:
    """As HTML, in a line, with what commands a reader or hides text made visible."""
    return escape(printable_line(text))
