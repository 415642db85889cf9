"""Serves the page for a browser, and what it asks: how files are seen, and Markdown as HTML.

The page is a client of /v1/chat/completions like any other. Nothing of it comes from another host.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import nh3
from markdown_it import MarkdownIt
from starlette.responses import Response

from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.server.attachments import AttachmentLimits, attached_part
from ernie_local.server.failures import ApiError
from ernie_local.session import ChatImage, open_chat_images

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_THUMBNAIL_PIXELS, _VIEW_PIXELS = 240, 1600  # of the longer side
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Links open outside of the page, and images of other hosts are not fetched: an answer must not phone home.
_TAGS = nh3.ALLOWED_TAGS - {"img", "area", "map"}
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def page_file(name: str) -> Response:
    """A file of the page; ApiError 404 for any other."""
    folder = files("ernie_local.server") / "page"
    known = {one.name for one in folder.iterdir()}
    kind = _KINDS.get(name[name.rfind(".") :])
    if name not in known or kind is None:
        raise ApiError(404, "Not Found")
    return Response((folder / name).read_bytes(), media_type=kind, headers=dict(HEADERS))


def looks_of(
    data: bytes, processor: ImageProcessorConfig, context_size: int, limits: AttachmentLimits
) -> list[dict[str, Any]]:
    """For each page of a file how the model will see it; InputUnreadable for what is no image."""
    return [
        {
            "size": image.report.original_size,
            "seen_size": image.report.resized_size,
            "tokens": image.report.tokens,
            "notes": image.report.notes,
            "thumbnail": _thumbnail(image),
        }
        for image in _seen(data, processor, context_size, limits)
    ]


def view_of(
    data: bytes, processor: ImageProcessorConfig, context_size: int, limits: AttachmentLimits, page: int
) -> bytes:
    """A JPEG of what the model sees of a page, from 1, large enough to read; ApiError 404 for no page."""
    images = _seen(data, processor, context_size, limits)
    if not 1 <= page <= len(images):
        raise ApiError(404, f"page {page} of a file with {len(images)}")
    return _jpeg(images[page - 1], _VIEW_PIXELS)


def _seen(
    data: bytes, processor: ImageProcessorConfig, context_size: int, limits: AttachmentLimits
) -> list[ChatImage]:
    return open_chat_images([attached_part(data, None, limits)], processor, context_size)


def _thumbnail(image: ChatImage) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(_jpeg(image, _THUMBNAIL_PIXELS)).decode()}"


def _jpeg(image: ChatImage, most_pixels: int) -> bytes:
    """The part of an image that the model sees, its longer side at most `most_pixels`."""
    shown = image.in_full().image.copy()
    shown.thumbnail((most_pixels, most_pixels))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=85)
    return file.getvalue()


def safe_html(markdown: str) -> str:
    """Markdown of a model as HTML that can do nothing but be read."""
    return nh3.clean(_MARKDOWN.render(markdown), tags=_TAGS, link_rel="noopener noreferrer nofollow")
