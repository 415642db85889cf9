"""Pages of PDFs: which are read, how large they are drawn, and what is said of broken ones."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media import pdf
from ernie_local.media.open_image import OpenedImage, open_images
from ernie_local.media.pages import MAX_PAGES, PageRequest, choose_pages, split_page_request
from tests.pdf_files import make_pdf, one_page, stream

COLOURS = ((255, 0, 0), (0, 200, 0), (0, 0, 255), (0, 0, 0))


def coloured_pages(count: int) -> bytes:
    pages = [Image.new("RGB", (60, 40), COLOURS[number % len(COLOURS)]) for number in range(count)]
    buffer = io.BytesIO()
    pages[0].save(buffer, "PDF", save_all=True, append_images=pages[1:])
    return buffer.getvalue()


@pytest.fixture
def invoice(tmp_path: Path) -> Path:
    path = tmp_path / "invoice.pdf"
    path.write_bytes(coloured_pages(4))
    return path


def page_shown(opened: OpenedImage) -> int:
    """The page, from 1, whose colour is in the middle; JPEG inside the PDF shifts it a little."""
    colour = opened.image.getpixel((opened.image.width // 2, opened.image.height // 2))
    assert isinstance(colour, tuple)
    (index,) = [i for i, other in enumerate(COLOURS) if max(map(abs, map(int.__sub__, colour, other))) < 10]
    return index + 1


@pytest.mark.parametrize(
    ("suffix", "pages"),
    [("", [1, 2, 3, 4]), (":1-3", [1, 2, 3]), (":2", [2]), (":4-4", [4]), (":1-4", [1, 2, 3, 4])],
)
def test_the_pages_asked_for_are_read_in_order(invoice: Path, suffix: str, pages: list[int]) -> None:
    opened = open_images(f"{invoice}{suffix}")
    assert [image.name for image in opened] == [f"{invoice}:{page}" for page in pages]
    assert [page_shown(image) for image in opened] == pages
    assert {image.image.mode for image in opened} == {"RGB"}


def test_a_name_given_back_opens_the_same_page(invoice: Path) -> None:
    second = open_images(str(invoice))[1]
    (again,) = open_images(second.name)
    assert again.name == second.name
    assert again.image.tobytes() == second.image.tobytes()


def test_a_pdf_of_one_page_keeps_its_plain_name(tmp_path: Path) -> None:
    path = tmp_path / "one.pdf"
    path.write_bytes(coloured_pages(1))
    assert [image.name for image in open_images(path)] == [str(path)]


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":5", r"page 5 was asked for, but there are 4"),
        (":2-9", r"page 9 was asked for, but there are 4"),
        (":0", r"pages 0 cannot be read"),
        (":3-2", r"pages 3-2 cannot be read"),
        (":2-", r"no such file"),
        (":last", r"no such file"),
    ],
)
def test_pages_that_are_not_there_are_refused(invoice: Path, suffix: str, message: str) -> None:
    with pytest.raises(InputUnreadable, match=message):
        open_images(f"{invoice}{suffix}")


def test_more_pages_than_the_limit_are_refused_and_never_cut(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_bytes(coloured_pages(MAX_PAGES + 1))
    for suffix in ("", f":1-{MAX_PAGES + 1}"):
        with pytest.raises(InputUnreadable, match=r"33 pages, at most 32 .*\n.*\n.*book.pdf:1-32$"):
            open_images(f"{path}{suffix}")
    assert len(open_images(f"{path}:31-33")) == 3


def test_a_file_with_a_colon_in_its_name_goes_before_a_page(tmp_path: Path, invoice: Path) -> None:
    odd = tmp_path / "invoice.pdf:2"
    odd.write_bytes(coloured_pages(1))
    (opened,) = open_images(odd)
    assert opened.name == str(odd)
    assert page_shown(opened) == 1


@pytest.mark.parametrize(
    ("text", "path", "request_text"),
    [
        ("invoice.pdf:1-3", "invoice.pdf", "1-3"),
        ("invoice.pdf:2", "invoice.pdf", "2"),
        ("invoice.pdf:7-7", "invoice.pdf", "7"),
        ("a:b.pdf:2", "a:b.pdf", "2"),
        ("-:2", "-", "2"),
        (r"C:\scans\invoice.pdf", r"C:\scans\invoice.pdf", None),
        (r"C:\scans\invoice.pdf:2", r"C:\scans\invoice.pdf", "2"),
        ("C:1", "C:1", None),
        ("invoice.pdf", "invoice.pdf", None),
        ("invoice.pdf:", "invoice.pdf:", None),
        ("invoice.pdf:x", "invoice.pdf:x", None),
        ("invoice.pdf:-1", "invoice.pdf:-1", None),
        (":2", ":2", None),
        ("invoice.pdf:\u0662", "invoice.pdf:\u0662", None),
    ],
)
def test_paths_and_pages_are_told_apart(text: str, path: str, request_text: str | None) -> None:
    found_path, request = split_page_request(text)
    assert (found_path, str(request) if request else None) == (path, request_text)


def test_a_document_without_pages_is_refused() -> None:
    with pytest.raises(InputUnreadable, match="has 0 pages"):
        choose_pages(None, 0, "empty.pdf")
    assert list(choose_pages(PageRequest(2, 3), 5, "x")) == [2, 3]


@pytest.mark.parametrize(
    ("media_box", "extra", "dpi", "size", "note"),
    [
        (b"0 0 595 842", b"", 150, (1240, 1755), None),
        (b"0 0 595 842", b"/Rotate 90", 150, (1755, 1240), None),
        (b"0 0 72 144", b"", 100, (100, 200), None),
        (b"0 0 1 1", b"", 150, (3, 3), None),
        (b"0 0 14400 14400", b"", 150, (3584, 3584), "read at 17.9 instead of 150 dpi"),
    ],
)
def test_a_page_is_drawn_at_the_resolution_asked_for(
    media_box: bytes, extra: bytes, dpi: float, size: tuple[int, int], note: str | None
) -> None:
    (opened,) = open_images(one_page(media_box, extra), pdf_dpi=dpi)
    assert all(abs(ours - asked) <= 1 for ours, asked in zip(opened.image.size, size, strict=True))
    assert opened.image.getpixel((0, 0)) == (255, 255, 255)
    assert len(opened.notes) == (1 if note else 0)
    assert note is None or note in opened.notes[0]


def test_a_page_as_thin_as_a_thread_is_refused() -> None:
    with pytest.raises(InputUnreadable, match=r"image:1: 30001 x 21 pixels, one side 1428\.6 times"):
        open_images(one_page(b"0 0 14400 10"))


def encrypted(handler: bytes) -> bytes:
    entries = (handler, b"ab" * 32, b"cd" * 32)
    handler_object = b"<< /Filter /%s /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % entries
    return one_page(b"0 0 10 10", more=(handler_object,), trailer=b"/Encrypt 4 0 R /ID [<00><00>]")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encrypted(b"Standard"), 'is encrypted\n.*password.*\n.*password="PASSWORD".*qpdf --decrypt'),
        (encrypted(b"Unheard"), "encrypted in a way that PDFium does not know"),
        (b"%PDF-1.7\nnothing else", "cut off or damaged; 21 bytes were read"),
        (coloured_pages(2)[:300], "cut off or damaged; 300 bytes were read"),
    ],
)
def test_locked_and_broken_pdfs_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputUnreadable, match=message) as caught:
        open_images(data)
    assert caught.value.exit_code == 5
    assert len(str(caught.value).splitlines()) == 3


def bomb() -> bytes:
    """Forms in forms: each draws the next one ten times."""
    forms = [
        stream(
            b"/Type /XObject /Subtype /Form /BBox [0 0 99 99] /Resources << /XObject << /F %d 0 R >> >>"
            % (number + 1),
            b"/F Do " * 10 if number < 15 else b"0 0 9 9 re f",
        )
        for number in range(5, 16)
    ]
    extra = b"/Contents 4 0 R /Resources << /XObject << /F 5 0 R >> >>"
    return one_page(b"0 0 99 99", extra, more=(stream(b"", b"/F Do"), *forms))


def test_a_page_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "PAGE_SECONDS", 1)
    with pytest.raises(InputUnreadable, match="image:1: not drawn after 1 seconds") as caught:
        open_images(bomb())
    assert len(str(caught.value).splitlines()) == 3


def test_a_page_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "PDF_MEMORY_BYTES", 1 << 20)
    with pytest.raises(InputUnreadable, match="image:1: the reader of PDFs failed") as caught:
        open_images(one_page(b"0 0 14400 14400"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_crop_box_outside_of_the_page_is_left_out_of_account() -> None:
    (opened,) = open_images(one_page(b"0 0 72 144", b"/CropBox [500 500 600 700]"), pdf_dpi=100)
    assert opened.image.size == (100, 200)
    assert ["crop box" in note for note in opened.notes] == [True]


def test_a_damaged_page_is_named() -> None:
    data = make_pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R 9 0 R] /Count 2 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
        ]
    )
    with pytest.raises(InputUnreadable, match="page 2 of 2 cannot be drawn"):
        open_images(data)
