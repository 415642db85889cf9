"""Every kind of source to upright RGB on white, and every kind of bad input to three lines."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media import decode, open_image
from ernie_local.media.decode import MAX_PIXELS
from ernie_local.media.open_image import open_images
from tests.special_files import within_seconds

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(source: Any) -> np.ndarray[Any, Any]:
    (opened,) = open_images(source)
    assert opened.image.mode == "RGB"
    return np.asarray(opened.image).astype(int)


def refusal(source: Any) -> str:
    """The message of the refusal, which is three lines of exit code 5 and comes without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputUnreadable) as caught:
            open_images(source)
    assert caught.value.exit_code == 5
    assert len(str(caught.value).splitlines()) == 3
    return str(caught.value)


@pytest.fixture(scope="module")
def arrow() -> Image.Image:
    """No two of its turned and mirrored forms are equal: four gray levels in the corners, smooth for JPEG."""
    pixels = np.zeros((40, 64, 3), dtype=np.uint8)
    pixels[:20, :32], pixels[:20, 32:], pixels[20:, :32], pixels[20:, 32:] = 0, 80, 160, 240
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_image_is_read_by_its_content_whatever_its_name(
    tmp_path: Path, kind: str, arrow: Image.Image
) -> None:
    path = tmp_path / "image.txt"
    path.write_bytes(encode(arrow, kind))
    (opened,) = open_images(path)
    assert opened.name == str(path)
    assert opened.notes == ()
    assert np.abs(np.asarray(opened.image).astype(int) - np.asarray(arrow)).max() <= 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_image_is_turned_as_its_exif_data_says(kind: str, orientation: int, arrow: Image.Image) -> None:
    """The stored image is the upright one carried back by the inverse of what the orientation asks for."""
    stored = {
        1: arrow,
        2: arrow.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: arrow.transpose(Image.Transpose.ROTATE_180),
        4: arrow.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: arrow.transpose(Image.Transpose.TRANSPOSE),
        6: arrow.transpose(Image.Transpose.ROTATE_90),
        7: arrow.transpose(Image.Transpose.TRANSVERSE),
        8: arrow.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = pixels_of(encode(stored, kind, exif=exif))
    assert pixels.shape == (40, 64, 3)
    assert np.abs(pixels - np.asarray(arrow)).max() <= 12


def test_damaged_exif_data_leaves_the_image_and_is_noted(arrow: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(arrow, "WEBP", exif=exif, lossless=True)
    for mark in (b"II*\0", b"MM\0*"):
        data = data.replace(mark, b"????")
    (opened,) = open_images(data)
    assert opened.image.size == (64, 40)
    assert opened.notes == ("its EXIF data is damaged, so it was not turned",)


def half_transparent(mode: str) -> Image.Image:
    """Left: opaque black. Right: fully transparent. Middle column: half, where the mode can say so."""
    image = Image.new("RGBA", (30, 10), (0, 0, 0, 255))
    image.paste((0, 0, 0, 128), (10, 0, 20, 10))
    image.paste((200, 10, 10, 0), (20, 0, 30, 10))
    if mode == "P":
        palette = Image.new("P", (30, 10), 0)
        palette.putpalette([0, 0, 0, 200, 10, 10])
        palette.paste(1, (20, 0, 30, 10))
        palette.info["transparency"] = 1
        return palette
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP"), ("RGBA", "TIFF")],
)
def test_transparency_lies_on_white(mode: str, kind: str) -> None:
    image = half_transparent(mode)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if mode == "P":
        options["transparency"] = 1
    pixels = pixels_of(encode(image, kind, **options))
    assert pixels[5, 2].tolist() == [0, 0, 0]
    assert pixels[5, 27].tolist() == [255, 255, 255]
    if mode != "P":
        assert abs(pixels[5, 15] - 127).max() <= 1


@pytest.mark.parametrize(("drawn", "ground"), [("white", "black"), ("#f0f0d0", "black"), ("#777", "white")])
@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "GIF"), ("RGBA", "AVIF")]
)
def test_a_light_drawing_lies_on_black_and_that_is_noted(
    mode: str, kind: str, drawn: str, ground: str
) -> None:
    image = Image.new("RGBA", (60, 40), (255, 255, 255, 0))
    image.paste(drawn, (10, 10, 20, 30))
    (opened,) = open_images(encode(image.convert(mode), kind))
    assert opened.image.getpixel((50, 5)) == ((0, 0, 0) if ground == "black" else (255, 255, 255))
    assert len(opened.notes) == (ground == "black")
    assert all("read on black" in note for note in opened.notes)


@pytest.mark.parametrize("colour", [(255, 255, 255, 255), (255, 255, 255, 0)])
def test_a_page_that_hides_nothing_stays_on_white(colour: tuple[int, ...]) -> None:
    """Opaque with black on it and open corners; or nothing but ground."""
    image = Image.new("RGBA", (90, 90), colour)
    image.paste((0, 0, 0, colour[3]), (30, 30, 60, 60))
    image.paste((0, 0, 0, 0), (0, 0, 9, 9))
    (opened,) = open_images(encode(image, "PNG"))
    assert opened.image.getpixel((2, 2)) == (255, 255, 255)
    assert opened.notes == ()


def test_a_colour_declared_transparent_in_an_rgb_png_is_white() -> None:
    image = Image.new("RGB", (10, 10), (1, 2, 3))
    image.putpixel((4, 4), (9, 9, 9))
    pixels = pixels_of(encode(image, "PNG", transparency=(1, 2, 3)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[4, 4].tolist() == [9, 9, 9]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 300).round().astype(np.uint16).reshape(15, 20)
    pixels = pixels_of(encode(Image.fromarray(values), kind))
    assert (pixels == np.round(values / 257.0)[:, :, None]).all()


@pytest.mark.parametrize(("photometric", "flipped"), [(1, False), (0, True)])
def test_a_16_bit_tiff_may_count_from_white(photometric: int, flipped: bool) -> None:
    values = np.full((8, 8), 60000, dtype=np.uint16)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = photometric
    pixels = pixels_of(encode(Image.fromarray(values), "TIFF", tiffinfo=tags))
    assert (pixels == (255 - 233 if flipped else 233)).all()


def test_32_bit_gray_is_refused() -> None:
    assert "gray of 32 bits, at most 16" in refusal(encode(Image.new("F", (9, 9)), "TIFF"))
    assert "gray of 32 bits, at most 16" in refusal(encode(Image.new("I", (9, 9)), "TIFF"))


def test_a_colour_model_without_a_way_to_rgb_is_refused() -> None:
    assert "this La image cannot be decoded" in refusal(Image.new("La", (9, 9)))


@pytest.mark.parametrize(
    ("mode", "kind", "colour", "expected"),
    [
        ("CMYK", "JPEG", (0, 255, 255, 0), [255, 0, 0]),
        ("CMYK", "TIFF", (0, 255, 255, 0), [255, 0, 0]),
        ("YCbCr", "JPEG", (128, 128, 128), [128, 128, 128]),
        ("1", "PNG", 1, [255, 255, 255]),
        ("1", "TIFF", 0, [0, 0, 0]),
        ("L", "BMP", 77, [77, 77, 77]),
        ("P", "BMP", 0, [0, 0, 0]),
    ],
)
def test_other_colour_models_come_to_rgb(mode: str, kind: str, colour: Any, expected: list[int]) -> None:
    pixels = pixels_of(encode(Image.new(mode, (16, 16), colour), kind))
    assert np.abs(pixels - expected).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_a_moving_image_the_first_frame_is_read_and_that_is_noted(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    (opened,) = open_images(data)
    assert opened.image.getpixel((5, 5)) == (250, 0, 0)
    assert opened.notes == ("a moving image, of which the first frame is read",)


def test_a_tiff_has_pages_as_a_pdf_has(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (20 + number, 20), (number * 50, 0, 0)) for number in range(4)]
    path = tmp_path / "scan.tif"
    path.write_bytes(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert [opened.image.width for opened in open_images(path)] == [20, 21, 22, 23]
    last = open_images(f"{path}:3-4")
    assert [(opened.name, opened.image.size) for opened in last] == [
        (f"{path}:3", (22, 20)),
        (f"{path}:4", (23, 20)),
    ]
    assert last[1].image.getpixel((0, 0)) == (150, 0, 0)
    assert "page 5 was asked for, but there are 4" in refusal(f"{path}:5")


def test_pages_that_are_too_much_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_DOCUMENT_PIXELS", 1000)
    pages = [Image.new("L", (20, 20))] * 4
    text = refusal(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert "1,200 pixels up to page 3, at most 1,000 at once" in text
    assert "image:1-2 would do" in text


def test_a_image_without_pages_has_one(tmp_path: Path, arrow: Image.Image) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode(arrow, "PNG"))
    assert [opened.name for opened in open_images(f"{path}:1")] == [str(path)]
    assert "page 2 was asked for, but there are 1" in refusal(f"{path}:2")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_off_image_is_refused_wherever_the_cut_is(kind: str, arrow: Image.Image) -> None:
    noise = Image.effect_noise((60, 50), 80).convert("RGB")
    data = encode(noise, kind)
    for kept in (len(data) // 2, len(data) // 4, 60, 20):
        message = refusal(data[:kept])
        assert message.startswith("image: ")
        assert f"{kept:,} bytes" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 bytes"),
        (
            b"Dear customer, the total is 12.50\n" * 3,
            'is not an image\n.* 102 bytes and starts with the text "Dear customer',
        ),
        (b"\x00\x01\x02\x03" * 9, "is not an image\n.* 36 bytes and starts with the bytes 00 01 02"),
        (
            b"\0\0\0\x18ftypheic" + b"\0" * 40,
            "HEIC (data.*\n.*\n.*ernie-local.heic|image cannot)",
        ),
        (b"\0\0\0\x18ftypmif1" + b"\0" * 40, "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafavif" + b"\0" * 40, "this AVIF image cannot be decoded"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 40, "this AVIF image cannot be decoded; 52 bytes"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40, "this JPEG 2000 image cannot be decoded"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 40, "holds video data.*\n.*\n.*as a video"),
        (b'<?xml version="1.0"?>\n<svg width="5">', "holds SVG data"),
        (b"PK\x03\x04" + b"\0" * 40, "holds ZIP"),
        (b"icns" + b"\0" * 40, "holds icon data"),
        (b"\x89PNG\r\n\x1a\n", "this PNG image cannot be decoded; 8 bytes were read"),
    ],
)
def test_files_that_are_no_image_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "invoice.png"
    path.write_bytes(content)
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    with pytest.raises(InputUnreadable, match=message):
        open_images(path)


def test_paths_that_lead_to_no_file_are_refused(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone.png'}: no such file" in refusal(tmp_path / "gone.png")
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal("") or "folder" in refusal("")
    for odd in ("a\0b.png", "x" * 5000, "~nobody-of-this-name/x.png", "https://example.org/x.png"):
        refusal(odd)
    file = tmp_path / "file"
    file.touch()
    refusal(file / "below.png")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(b"x")
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrow: Image.Image
) -> None:
    (tmp_path / "scan.png").write_bytes(encode(arrow, "PNG"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert open_images("~/scan.png")[0].image.size == (64, 40)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + bytes([0, 0, 0, 9])
        + b"IDAT"
        + b"\0" * 13
    )


def header_only(kind: str, width: int, height: int) -> bytes:
    """A file whose header tells the size, with next to nothing behind it."""
    if kind == "PNG":
        return png_header(width, height)
    data = encode(Image.new("L", (64, 48)), kind)
    if kind == "GIF":
        descriptor = data.index(b",\0\0\0\0")
        size = struct.pack("<HH", width, height)
        return data[:6] + size + data[10 : descriptor + 5] + size + data[descriptor + 9 :]
    if kind == "JPEG":
        return data.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", height, width))
    if kind == "BMP":
        return data.replace(struct.pack("<ii", 64, 48), struct.pack("<ii", width, height))
    return data.replace(struct.pack("<HHII", 256, 4, 1, 64), struct.pack("<HHII", 256, 4, 1, width)).replace(
        struct.pack("<HHII", 257, 4, 1, 48), struct.pack("<HHII", 257, 4, 1, height)
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_too_many_pixels_are_refused_from_the_header(kind: str) -> None:
    text = refusal(header_only(kind, 30000, 30000))
    assert text.startswith("image: 30000 x 30000 = 900,000,000 pixels, at most 100,000,000 are read\n")
    # One side over the limit: Pillow alone would only warn.
    assert "100,010,000 pixels" in refusal(header_only(kind, 10001, 10000))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "TIFF")])
def test_the_largest_image_is_read_in_little_memory(mode: str, kind: str) -> None:
    data = encode(
        Image.new(mode, (10000, 10000)), kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {})
    )
    data += bytes(1 << 20)  # a small file may not take so much
    code = (
        "import sys; from ernie_local.media.open_image import open_images\n"
        "(opened,) = open_images(sys.stdin.buffer.read()); print(opened.image.size, opened.notes)\n"
        # Not getrusage, whose peak includes that of the parent before this program began.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    size, kilobytes = done.stdout.decode().splitlines()
    assert size.startswith("(5000, 5000) ('a large image of 10000 x 10000 pixels, read at 1/2")
    assert int(kilobytes) < 700_000


def test_a_large_image_keeps_what_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MOST_VISIBLE_PIXELS", 1000)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        image = Image.new("RGBA", (211, 1003), "white")
        image.paste("black", (100, 600, 150, 800))
        (opened,) = open_images(encode(image.convert(mode), "PNG"))
        factor = 14
        assert opened.image.size == (-(-211 // factor), -(-1003 // factor))
        pixels = np.asarray(opened.image.convert("L"))
        assert pixels[50, 9] == 0
        assert pixels[50, 2] == pixels[20, 9] == pixels[-1, -1] == 255


def test_a_jpeg_of_many_passes_is_refused() -> None:
    data = encode(Image.new("L", (64, 48)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    assert "a JPEG image of 10" in refusal(data[:start] + data[start:-2] * 101)


def test_a_webp_of_the_largest_size_is_refused_by_its_pixels() -> None:
    data = bytearray(encode(Image.new("RGB", (64, 48)), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    canvas = data.index(b"VP8X") + 12
    data[canvas : canvas + 6] = struct.pack("<I", 16382)[:3] * 2
    assert "268,402,689 pixels, at most 100,000,000 are read" in refusal(bytes(data))


def test_a_image_up_to_the_limit_is_not_refused_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own limit lies below ours and would warn or raise in between."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < MAX_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_images(encode(Image.new("L", (64, 48)), "PNG"))[0].image.size == (64, 48)


@pytest.mark.parametrize(("width", "height"), [(3000, 10), (10, 3000)])
def test_long_thin_images_are_refused_before_decoding(width: int, height: int) -> None:
    assert f"{width} x {height} pixels, one side 300.0 times the other, at most 200" in refusal(
        png_header(width, height)
    )


def test_images_come_from_memory_too(arrow: Image.Image) -> None:
    data = encode(arrow, "PNG")
    array = np.asarray(arrow)
    gray = array[:, :, 0]
    expected = array.astype(int)
    sources: list[Any] = [
        data,
        bytearray(data),
        memoryview(data),
        arrow,
        array,
        array.transpose(2, 0, 1),
        gray,
    ]
    sources += [gray[None], gray[:, :, None], torch.tensor(array), torch.tensor(array).permute(2, 0, 1)]
    sources += [np.dstack([array, np.full(gray.shape, 255, np.uint8)]), torch.tensor(gray)]
    for source in sources:
        assert (pixels_of(source) == expected).all()
        assert open_images(source)[0].name == "image"


def test_a_pil_image_is_made_upright_and_left_as_it_was(arrow: Image.Image) -> None:
    turned = arrow.convert("RGBA")
    turned.getexif()[0x0112] = 6
    (opened,) = open_images(turned)
    assert opened.image.size == (40, 64)
    assert (turned.size, turned.mode) == ((64, 40), "RGBA")


def test_a_shape_that_could_be_both_is_channels_first() -> None:
    array = np.zeros((3, 5, 3), dtype=np.uint8)
    assert open_images(array)[0].image.size == (3, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), dtype=np.float32), "an array of float32"),
        (torch.zeros(3, 4, 4), "an array of float32"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((5, 4, 2), dtype=np.uint8), r"shape \(5, 4, 2\)"),
        (np.zeros((0, 4), dtype=np.uint8), r"shape \(0, 4\)"),
        (np.zeros(4, dtype=np.uint8), r"shape \(4,\)"),
        (["a.png"], "a list is not an image"),
        (None, "a NoneType is not an image"),
    ],
)
def test_arrays_that_are_no_image_are_refused(array: Any, message: str) -> None:
    refusal(array)
    with pytest.raises(InputUnreadable, match=message):
        open_images(array)


def test_standard_input_is_read_where_there_is_one(arrow: Image.Image) -> None:
    data = encode(arrow, "PNG")
    for mark in ("-", "-:1"):
        (opened,) = open_images(mark, stdin=io.BytesIO(data))
        assert (opened.name, opened.image.size) == ("standard input", (64, 40))
    with pytest.raises(InputUnreadable, match="standard input: holds 0 bytes"):
        open_images("-", stdin=io.BytesIO())
    with pytest.raises(UsageError, match="'-' stands for standard input"):
        open_images("-")


def test_an_endless_source_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_image, "MAX_FILE_BYTES", 1 << 20)
    source = io.BytesIO(encode(Image.new("L", (9, 9)), "PNG") + bytes(4 << 20))
    with pytest.raises(InputUnreadable, match="2,097,152 bytes or more, at most 1,048,576 are read"):
        open_images("-", stdin=source)
    assert source.tell() == 2 << 20


def test_a_stream_that_is_no_image_is_refused_by_its_beginning() -> None:
    source = io.BytesIO(b"once upon a time " * (1 << 18))
    with pytest.raises(InputUnreadable, match="at least 1,048,576 bytes and starts with the text"):
        open_images("-", stdin=source)
    assert source.tell() == 1 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"Once upon a time, in a large file",
            "this file has 1,099,511,627,776 bytes and starts with the text",
        ),
        (b"\x89PNG\r\n\x1a\n", "1,099,511,627,776 bytes, at most 536,870,912 are read"),
    ],
)
def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(content)
    os.truncate(path, 1 << 40)
    tracemalloc.start()
    assert message in refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_sent_to_standard_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with within_seconds(20):
        assert "standard input: - in place of the path" in refusal(tmp_path / "pipe")


def test_importing_the_readers_imports_neither_torch_nor_pypdfium2() -> None:
    code = (
        "import sys, ernie_local.media.open_image, ernie_local.media.processor, ernie_local.media.tokens\n"
        "print([name for name in ('torch', 'transformers', 'pypdfium2') if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert output.stdout.strip() == "[]"
