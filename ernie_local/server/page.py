"""Serves the page for a browser, and what it asks: the server's state, how files are seen, Markdown as HTML.

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

from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.server.failures import ApiError
from ernie_local.server.service import Service
from ernie_local.session import ImagePart, open_chat_images
from ernie_local.session.answer import peak_memory_bytes
from ernie_local.sizes import format_bytes

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_THUMBNAIL_PIXELS = 240
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


def page_state(model_name: str, service: Service | None) -> dict[str, Any]:
    """What the head of the page shows, and the memory of the process."""
    if service is None:
        return {"model": model_name, "line": "loading the model"}
    parts = [service.phase or ("idle" if not service.num_running else "writing")]
    if service.num_waiting:
        parts.append(f"{service.num_waiting} questions wait")
    peak = peak_memory_bytes()
    if peak is not None:
        parts.append(f"at most {format_bytes(peak)} of memory used")
    return {"model": model_name, "line": ", ".join(parts)}


def looks_of(data: bytes, processor: ImageProcessorConfig, context_size: int) -> list[dict[str, Any]]:
    """For each page of a file how the model will see it; InputUnreadable for what is no image."""
    looks = []
    for opened in open_images(data):
        report = open_chat_images([ImagePart(opened)], processor, context_size)[0].report
        thumbnail = opened.image.copy()
        thumbnail.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
        file = io.BytesIO()
        thumbnail.save(file, "JPEG", quality=80)
        looks.append(
            {
                "size": report.original_size,
                "seen_size": report.resized_size,
                "tokens": report.tokens,
                "notes": report.notes,
                "thumbnail": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}",
            }
        )
    return looks


def safe_html(markdown: str) -> str:
    """Markdown of a model as HTML that can do nothing but be read."""
    return nh3.clean(_MARKDOWN.render(markdown), tags=_TAGS, link_rel="noopener noreferrer nofollow")
