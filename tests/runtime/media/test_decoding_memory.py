"""A small file may not fill the memory, and is refused before it is decoded."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media import decoding_memory
from ernie_local.media.open_image import open_images
from tests.pdf_files import make_pdf


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data: bytes) -> str:
    """The three lines of the refusal."""
    with pytest.raises(InputUnreadable) as caught:
        open_images(data)
    assert len(str(caught.value).splitlines()) == 3
    return str(caught.value)


def shared_strips(num_pages: int, width: int, height: int, bands: int) -> bytes:
    """A deflated TIFF whose rows are strips, all of which, on all pages, are the same bytes."""
    strip = zlib.compress(bytes(width * bands))
    size = 2 + 12 * 9 + 4
    bits = 8 + num_pages * size
    offsets = bits + 2 * bands
    counts = offsets + 4 * height
    data = b"II*\0" + struct.pack("<I", 8)
    for page in range(num_pages):
        tags = (
            (256, 1, width),
            (257, 1, height),
            (258, bands, bits if bands > 2 else 8),
            (259, 1, 8),
            (262, 1, 2 if bands > 2 else 1),
            (273, height, offsets),
            (277, 1, bands),
            (278, 1, 1),
            (279, height, counts),
        )
        following = 0 if page == num_pages - 1 else 8 + size * (page + 1)
        entries = b"".join(struct.pack("<HHII", tag, 4 if tag != 258 else 3, *rest) for tag, *rest in tags)
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    data += struct.pack("<H", 8) * bands + struct.pack("<I", counts + 4 * height) * height
    return data + struct.pack("<I", len(strip)) * height + strip


def resized_header(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """An image of 64 x 48 pixels that says it has 10000 x 10000."""
    data = encode(Image.new(mode, (64, 48)), kind, **options)
    if kind == "JPEG":
        return data.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 10000, 10000))
    size = struct.pack(">II", 10000, 10000)
    if kind == "AVIF":
        return data.replace(b"ispe\0\0\0\0" + struct.pack(">II", 64, 48), b"ispe\0\0\0\0" + size)
    start = data.index(b"\xff\x51") + 6
    return data[:start] + size + data[start + 8 : start + 16] + size + data[start + 24 :]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Image.new("RGB", (6100, 6100)), "WEBP", lossless=True, quality=0), id="WebP"),
        pytest.param(resized_header("AVIF"), id="AVIF"),
        pytest.param(resized_header("JPEG2000", "L", no_jp2=True), id="JPEG 2000, gray"),
        pytest.param(resized_header("JPEG2000", "RGBA", no_jp2=True), id="JPEG 2000, transparent"),
        pytest.param(resized_header("JPEG", "CMYK", progressive=True), id="JPEG, progressive"),
        pytest.param(resized_header("JPEG", "RGB"), id="JPEG"),
        pytest.param(shared_strips(1, 10000, 10000, 3), id="TIFF"),
        pytest.param(shared_strips(32, 3000, 3000, 1), id="TIFF of many pages"),
    ],
)
def test_a_small_file_that_would_fill_the_memory_is_refused(data: bytes) -> None:
    assert len(data) < 100_000
    assert re.search(r"to decode, at most 512\.0 MiB for a file of [0-9,]+ bytes\n", refused(data))


def test_a_small_pdf_of_many_large_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_memory, "_MOST_BYTES", 1 << 20)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] >>"
    pages = b"<< /Type /Pages /Kids [3 0 R 4 0 R 5 0 R 6 0 R] /Count 4 >>"
    data = make_pdf([b"<< /Type /Catalog /Pages 2 0 R >>", pages, *[page] * 4])
    assert "pages 1 to 2 take 1.3 MiB, at most 1.0 MiB for a file of" in refused(data)
    assert len(open_images(data + bytes(3000))) == 4


def test_a_large_file_may_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_memory, "_MOST_BYTES", 1 << 20)
    data = encode(Image.new("RGB", (600, 600)), "PNG")
    assert "take 4.1 MiB to decode, at most 1.1 MiB for a file of" in refused(data)
    assert open_images(data + bytes(4000))[0].image.size == (600, 600)
