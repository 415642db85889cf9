"""Tells the format of a file by its first bytes, and says how to convert formats that are not read here.

File names are not looked at.
"""

from __future__ import annotations

from ernie_local.errors import InputUnreadable, parameter

# (offset, bytes, format)
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),  # without a container
)
# Of files that begin with a box of brands; what else begins so is a video.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
}
_BRANDS_OF_EITHER = {b"mif1", b"msf1", b"mif2"}
READABLE = "PNG, JPEG, WebP, AVIF, JPEG 2000, GIF, TIFF, BMP and PDF"
# A PDF may start with other bytes; readers look for its mark in the first kilobyte.
_PDF_MARK, _PDF_SEARCH_BYTES = b"%PDF-", 1024

_KNOWN_ELSEWHERE = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%!PS", "PostScript"),
    (0, b"PK\x03\x04", "ZIP (or an office document)"),
    (0, b"\0\0\x01\0", "icon"),
    (0, b"icns", "icon"),
    (4, b"ftyp", "video"),
    (4, b"moov", "video"),
    (4, b"mdat", "video"),
    (4, b"wide", "video"),
    (0, b"\x1a\x45\xdf\xa3", "video"),
    (8, b"AVI ", "video"),
    (0, b"FLV\1", "video"),
    (0, b"OggS", "video"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video"),  # ASF, as in WMV
    (0, b"\0\0\1\xba", "video"),  # MPEG
)
_CONVERSIONS = {
    "JPEG XL": "convert it: djxl in.jxl out.png (package libjxl-tools)",
    "SVG": "convert it: rsvg-convert in.svg -o out.png (package librsvg2-bin)",
    "PostScript": "convert it: ps2pdf in.ps out.pdf (package ghostscript)",
    "ZIP (or an office document)": "for an office document: soffice --convert-to pdf FILE",
    "video": f"give it as a video: {parameter('videos', 'clip.mp4')}",
}
_SHOWN_BYTES = 24
SNIFFED_BYTES = _PDF_SEARCH_BYTES  # all that `sniff_format` looks at


def sniff_format(data: bytes, name: str, num_bytes: int | None = None, *, shows_content: bool = True) -> str:
    """The format, such as "PNG", "JPEG 2000", "HEIC" or "PDF"; InputUnreadable for what is none of them.

    data: the first SNIFFED_BYTES, or more. num_bytes: of the whole file, None where that is not known.
    shows_content: the message may quote the file, as the user chose it.
    """
    if not data:
        raise InputUnreadable(
            f"{name}: holds 0 bytes",
            "an empty file shows nothing; a download or a copy may have been cut off",
            "download or copy it again",
        )
    found = image_format(data)
    if found is not None:
        return found
    start = data[:_PDF_SEARCH_BYTES].decode("latin-1").lower()
    kind = "SVG" if "<svg" in start else _match(data, _KNOWN_ELSEWHERE)
    if kind is not None:
        raise InputUnreadable(
            f"{name}: holds {kind} data, which is not read here",
            f"{READABLE} are read",
            _CONVERSIONS.get(kind, "convert it to PNG with the program it was made in"),
        )
    size = "at least" if num_bytes is None else "has"
    size += f" {len(data) if num_bytes is None else num_bytes:,} bytes"
    raise InputUnreadable(
        f"{name}: is not an image",
        f"{READABLE} are read; this file {size}" + (f" and starts with {_show(data)}" * shows_content),
        "give the image itself; text belongs into the question",
    )


def image_format(data: bytes) -> str | None:
    """The format of an image or a PDF, as of `sniff_format`; None for what is none that is read here."""
    found = _match(data, _SIGNATURES) or _kind_by_brands(data)
    return "PDF" if found is None and _PDF_MARK in data[:_PDF_SEARCH_BYTES] else found


def is_video(data: bytes) -> bool:
    """Whether a file that begins so is a video; a moving image is an image by its beginning."""
    return image_format(data) is None and _match(data, _KNOWN_ELSEWHERE) == "video"


def _kind_by_brands(data: bytes) -> str | None:
    """AVIF or HEIC: they share a container, whose first box names the brands of its content in order."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), SNIFFED_BYTES)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, end, 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return kinds[0] if kinds else ("HEIC" if _BRANDS_OF_EITHER & {*brands} else None)


def _match(data: bytes, signatures: tuple[tuple[int, bytes, str], ...]) -> str | None:
    return next((kind for offset, mark, kind in signatures if data.startswith(mark, offset)), None)


def _show(data: bytes) -> str:
    """The first bytes as quoted text if they are printable, else in hexadecimal."""
    head = data[:_SHOWN_BYTES]
    text = head.decode("utf-8", errors="ignore")
    if text and all(character.isprintable() or character in "\t\r\n" for character in text):
        return f'the text "{" ".join(text.split())}"'
    return f"the bytes {head.hex(' ')}"
