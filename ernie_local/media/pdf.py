"""Renders pages of a PDF as RGB images, in a process of its own that is ended where it takes too long."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media.decoding_memory import RGB_BYTES, most_decoding_bytes
from ernie_local.media.image_view import ImageView, ViewBox
from ernie_local.media.pages import Page, PageRequest
from ernie_local.sizes import format_bytes

# 8-point print is 16 pixels high. An A4 page takes 2,772 tokens; 200 dpi would take 4,956.
DEFAULT_DPI = 150.0
# Of computing, for a page.
PAGE_SECONDS = 10
# Of addresses, besides the document itself; drawing the largest page takes 100 MB.
PDF_MEMORY_BYTES = 2 << 30
# The process finds the packages of this one. -P: never those of the folder that it runs in.
_FIND_PACKAGES = "import json, sys; sys.path[:] = json.loads(sys.argv[1])"
_COMMAND = ("-P", "-c", f"{_FIND_PACKAGES}; from ernie_local.media.pdf_process import main; main()")


def render_pdf(
    data: bytes,
    name: str,
    request: PageRequest | None,
    dpi: float = DEFAULT_DPI,
    password: str | None = None,
    part: ViewBox | None = None,
) -> list[Page]:
    """Render pages of a PDF on white, with filled form fields and annotations.

    part: draw only this of a page: (left, top, right, bottom) in points, as a viewer shows it.
    InputUnreadable for damaged and empty files, encrypted ones that `password` does not open, for pages that
    are not there, and for what takes too much time or memory to draw.
    """
    asked = None if request is None else [request.first, request.last]
    limits = {"page_seconds": PAGE_SECONDS, "memory_bytes": PDF_MEMORY_BYTES + 2 * len(data)}
    # The password too goes through the pipe: other users see the arguments of a process.
    job = json.dumps(
        {"name": name, "pages": asked, "dpi": dpi, "password": password, "part": part, **limits}
    ).encode()
    with subprocess.Popen(
        [sys.executable, *_COMMAND, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        try:
            # It reads everything before it writes.
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(job + b"\n")
                process.stdin.write(data)
            first = 1 if request is None else request.first
            pages: list[Page] = []
            memory = 0
            for page in _read_pages(process.stdout, first):
                pages.append(page)
                memory += RGB_BYTES * page.image.width * page.image.height
                _check_memory(memory, len(data), name, first, page.number)
            if process.wait():
                raise _stopped(process.returncode, f"{name}:{first + len(pages)}")
            return pages
        finally:
            process.kill()


def _read_pages(output: IO[bytes], number: int) -> Iterator[Page]:
    """Pages up to the end of the output; `number` is that of the first one."""
    while line := output.readline():
        drawn = json.loads(line)
        if "error" in drawn:
            raise InputUnreadable(*drawn["error"])
        width, height = drawn["size"]
        pixels = output.read(3 * width * height)
        if len(pixels) == 3 * width * height:
            image = Image.frombytes("RGB", (width, height), pixels)
            points_wide, points_high = drawn["points"]
            page_wide, page_high, left, top = drawn["place"]
            whole = ImageView.whole((page_wide, page_high), (points_wide, points_high))
            view = whole.cropped((left, top, left + width, top + height))
            yield Page(number, drawn["num_pages"], image, view, tuple(drawn["notes"]))
        number += 1


def _check_memory(memory: int, num_bytes: int, name: str, first: int, last: int) -> None:
    most = most_decoding_bytes(num_bytes)
    if memory > most:
        raise InputUnreadable(
            f"{name}: pages {first} to {last} take {format_bytes(memory)}, at most {format_bytes(most)} for "
            f"a file of {num_bytes:,} bytes",
            "all pages asked for are held in memory together, and these are large",
            f"choose fewer pages: {name}:{first}-{max(first, last - 1)}",
        )


def _stopped(return_code: int, name: str) -> InputUnreadable:
    if return_code == -signal.SIGXCPU:
        what = f"{name}: not drawn after {PAGE_SECONDS} seconds of computing"
        why = "a page of text takes a tenth of a second; this one was made to take long, or is very detailed"
    else:
        what = f"{name}: the reader of PDFs failed (code {return_code}) with {format_bytes(PDF_MEMORY_BYTES)}"
        why = "the page is damaged, or takes more memory than that"
    return InputUnreadable(what, why, "take a screenshot of the page, or print it to a new PDF in a viewer")
