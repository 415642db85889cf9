"""Serves the page for a browser, and what it asks: how files are seen, and Markdown as HTML.

The page is a client of /v1/chat/completions like any other. Nothing of it comes from another host.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import nh3
from markdown_it import MarkdownIt
from PIL import Image
from starlette.responses import Response

from ernie_local.media.formats import is_video
from ernie_local.model_files import ModelFiles
from ernie_local.progress import Pause
from ernie_local.server.attachments import AttachmentLimits, attached_part
from ernie_local.server.failures import ApiError
from ernie_local.session import ChatImage, ChatMedia, open_chat_images, open_chat_video

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_THUMBNAIL_PIXELS, _VIEW_PIXELS = 240, 1600  # of the longer side
_THUMBNAIL_FRAMES, _VIEW_FRAMES = 4, 32  # of a video
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


@dataclass(frozen=True, slots=True)
class GivenFile:
    """The bytes of a file, with what says how the model will see it.

    pause: is called often while a video is decoded, and ends it by what it raises.
    """

    data: bytes
    files: ModelFiles
    context_size: int
    limits: AttachmentLimits
    pause: Pause | None = None

    def seen(self) -> Sequence[ChatMedia]:
        """Its pages, or the one video."""
        if is_video(self.data):
            return [open_chat_video(self.data, self.files.video_processor, self.context_size, self.pause)]
        part = attached_part(self.data, None, self.limits)
        return open_chat_images([part], self.files.image_processor, self.context_size)


def looks_of(file: GivenFile) -> list[dict[str, Any]]:
    """How the model will see each page of a file, or a video, which also has `frames` and `seconds`.

    InputUnreadable for what is neither image nor video, DoesNotFit for a video of too many tokens.
    """
    return [
        {
            "size": media.report.original_size,
            "seen_size": media.report.resized_size,
            "tokens": media.report.tokens,
            "notes": media.report.notes,
            "thumbnail": _thumbnail(media),
            **_length(media),
        }
        for media in file.seen()
    ]


def view_of(page: int, file: GivenFile) -> bytes:
    """A JPEG of what the model sees of a page, from 1, large enough to read; of a video a sheet of frames.

    ApiError 404 for no page.
    """
    pages = file.seen()
    if not 1 <= page <= len(pages):
        raise ApiError(404, f"page {page} of a file with {len(pages)}")
    return _jpeg(_picture(pages[page - 1], _VIEW_FRAMES), _VIEW_PIXELS)


def _length(media: ChatMedia) -> dict[str, float]:
    if isinstance(media, ChatImage):
        return {}
    return {"frames": len(media.report.frames), "seconds": media.report.duration}


def _thumbnail(media: ChatMedia) -> str:
    jpeg = _jpeg(_picture(media, _THUMBNAIL_FRAMES), _THUMBNAIL_PIXELS)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _picture(media: ChatMedia, most_frames: int) -> Image.Image:
    """The part of an image that the model sees, or frames of a video."""
    return media.in_full().image if isinstance(media, ChatImage) else media.sheet(most_frames)


def _jpeg(picture: Image.Image, most_pixels: int) -> bytes:
    """A copy whose longer side has at most `most_pixels`."""
    shown = picture.copy()
    shown.thumbnail((most_pixels, most_pixels))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=85)
    return file.getvalue()


def safe_html(markdown: str) -> str:
    """Markdown of a model as HTML that can do nothing but be read."""
    return nh3.clean(_MARKDOWN.render(markdown), tags=_TAGS, link_rel="noopener noreferrer nofollow")
