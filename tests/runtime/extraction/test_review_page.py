"""The review page, read as a browser reads it: what is in it, in which order, and that nothing breaks out."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ernie_local.errors import ErnieLocalError, InputUnreadable
from ernie_local.extraction.record import Record, RecordError
from ernie_local.extraction.review_page import write_review_page
from tests.pdf_files import one_page

FIELDS = {"vendor": "Kim", "total": 84.84, "lines": [{"item": "nuts", "price": None}], "note": ""}
SURE = {"vendor": 0.999, "total": 0.9, "lines[0].item": 0.4, "lines[0].price": 0.7, "note": 1.0}


class Page(HTMLParser):
    """All elements of a page with their attributes, and the text in each article."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.text = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.articles: list[list[str]] = []
        self._is_inside = False
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "article":
            self.articles.append([])
            self._is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = self._is_inside and tag != "article"

    def handle_data(self, data: str) -> None:
        if self._is_inside and data.strip():
            self.articles[-1].append(data.strip())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def titles(self) -> list[str]:
        return [article[0] for article in self.articles]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (300, 200), "white").save(folder / name)
    (folder / "d.pdf").write_bytes(one_page(b"0 0 200 100"))
    return folder


def written(path: Path, records: list[Record], folder: Path, **options: Any) -> Page:
    write_review_page(path, records, folder, **options)
    return Page(path)


def test_what_is_least_sure_comes_first(tmp_path: Path, folder: Path) -> None:
    error = RecordError("InputUnreadable", "b.png: 0 bytes", "it is empty", "copy it again")
    records = [
        Record("a.png", None, FIELDS, {"vendor": 0.95}),
        Record("b.png", error=error),
        Record("c.png", None, FIELDS, {"vendor": 0.6}),
        Record("a.png", 1, FIELDS, SURE, review=("lines[0].item", "lines[0].price")),
        Record("d.pdf", 1, FIELDS, {"vendor": 0.3}, failed_checks=("total == 1",)),
    ]
    page = written(tmp_path / "page.html", records, folder)
    assert page.titles() == ["d.pdf", "a.png", "b.png", "c.png", "a.png"]
    assert [one["data-kind"] for one in page.of("article")] == ["review", "review", "error", "", ""]
    first, second, third = page.articles[:3]
    assert first[1:5] == ["page 1", "checks failed", "total == 1", "does not hold"]
    shown = ["lines[0].item", "nuts", "40 %", "lines[0].price", "null", "70 %", "vendor", "Kim", "99 %"]
    assert second[2:] == [*shown, "total", "84.84", "90 %", "note", "empty text", "100 %"]
    assert third[1:] == ["b.png: 0 bytes", "it is empty", "try: copy it again"]
    buttons = [text for text in re.findall(r">([^<]+)</button>", page.text) if text[-1].isdigit()]
    assert buttons == ["all 5", "to review 2", "errors 1"]
    assert len(page.of("img")) == 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_lie_over_the_image_as_it_is_shown(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (400, 300), "white")
    image.paste((0, 0, 0), (40, 60, 140, 100))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "scan.png", exif=exif)
    record = Record("scan.png", None, {"total": 1}, boxes={"total": (40, 60, 140, 100)})
    page = written(tmp_path / "page.html", [record], tmp_path)
    (box,) = [one for one in page.of("button") if "box" in (one.get("class") or "")]
    (shown,) = page.of("img")
    data = base64.b64decode((shown["src"] or "").removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as again:
        dark = np.asarray(again.convert("L")) < 128
    rows, columns = np.nonzero(dark)
    height, width = dark.shape
    sides = dict(re.findall(r"(left|top|width|height):([\d.]+)%", box["style"] or ""))
    expected = {
        "left": columns.min() / width,
        "top": rows.min() / height,
        "width": (columns.max() + 1 - columns.min()) / width,
        "height": (rows.max() + 1 - rows.min()) / height,
    }
    assert {side: float(share) / 100 for side, share in sides.items()} == pytest.approx(expected, abs=0.01)
    assert box["data-field"] == "total"


HOSTILE = [
    '"><img src=x onerror=alert(1)>',
    "</td></table></article><script>alert(1)</script>",
    "'\"&<>`{title}{documents}{script}",
    "a\u202eb\x1b[31m\x00\u2028",
    "javascript:alert(1)",
]


def test_nothing_breaks_out_of_the_page(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.html", [record_of("text")], tmp_path)
    page = written(tmp_path / "page.html", [record_of(text) for text in HOSTILE], tmp_path)
    in_plain = [tag for tag, _ in plain.elements]
    one = in_plain[in_plain.index("article") : in_plain.index("p", in_plain.index("article"))]
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert tags.count("article") == len(HOSTILE)
    assert tags.count("td") == len(HOSTILE) * in_plain.count("td")
    assert tags.count("img") == 0
    assert len(one) > 5
    handlers = [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert handlers == []
    for text in HOSTILE[:3]:
        assert any(text in said for article in page.articles for said in article), text
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text


def record_of(text: str) -> Record:
    error = RecordError("InputUnreadable", text, text, text)
    boxes = {"list[0]": (1, 2, 3, 4)}
    return Record(
        text, None, {text: text, "list": [text]}, {"list[0]": 0.1}, boxes, ("list[0]",), (text,), error=error
    )


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path, folder: Path) -> None:
    page = written(tmp_path / "page.html", [Record("a.png", None, FIELDS, SURE)], folder)
    assert re.findall(r"https?://|//[a-z]", page.text.replace("// ", "")) == []
    assert all((one.get("src") or "data:").startswith("data:") for _, one in page.elements)
    assert page.of("link") == []
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(one["content"] for one in page.of("meta") if one.get("http-equiv"))
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_images_and_documents_have_limits(tmp_path: Path, folder: Path) -> None:
    Image.effect_noise((1200, 900), 60).save(folder / "noise.png")
    records = [Record("noise.png", None, {"n": n}, {"n": 1 - n / 100}) for n in range(20)]
    path = tmp_path / "page.html"
    found = write_review_page(path, records, folder, most_documents=6, most_image_bytes=1 << 20)
    assert found.num_documents == 6
    assert 1 < found.num_images < 6
    assert found.notes[0] == "14 of 20 documents are left out: the page shows 6"
    told = rf"{6 - found.num_images} images are left out: those in the page take 1\.\d MiB, at most 1\.0 MiB"
    assert re.fullmatch(told, found.notes[1])
    page = Page(path)
    assert [article[2] for article in page.articles if len(article) > 2][:2] == ["19", "18"]
    assert len(page.of("img")) == found.num_images
    assert all(note in page.text for note in found.notes)
    assert path.stat().st_size < 4 << 20


def test_long_documents_are_cut_and_say_so(tmp_path: Path) -> None:
    fields = {"text": "x" * 5000, "many": list(range(400))}
    (article,) = written(tmp_path / "page.html", [Record("a", None, fields)], tmp_path).articles
    assert article[-1] == "101 more values"
    assert "x" * 2000 + "... (5000 characters)" in article


def test_documents_that_cannot_be_shown_are_listed_all_the_same(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    records = [
        Record("gone.png", None, FIELDS),
        Record("../secret.png", None, FIELDS),
        Record("d.pdf", 9, FIELDS),
    ]
    page = written(tmp_path / "page.html", records, folder)
    assert page.of("img") == []
    assert "no such file" in page.articles[0][1]
    assert page.articles[1][1] == "the file lies outside of the folder that was read"
    assert "page 9 was asked for" in page.articles[2][2]
    whole = written(tmp_path / "page.html", [Record("d.pdf", None, FIELDS)], folder)
    assert len(whole.of("img")) == 1
    empty = written(tmp_path / "page.html", [], folder)
    assert (empty.articles, "page: 0 documents" in empty.text) == ([], True)


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")

    def broken() -> Iterator[Record]:
        yield Record("a.png", None, FIELDS)
        raise InputUnreadable("line 2", "half", "restore")

    with pytest.raises(InputUnreadable):
        write_review_page(path, broken(), folder)
    with pytest.raises(ErnieLocalError, match="cannot write a page"):
        write_review_page(tmp_path / "no" / "page.html", [], folder)
    assert path.read_text() == "before"
    written(path, [Record("b\udcff.png", None, {"a": "\ud800"})], folder)
