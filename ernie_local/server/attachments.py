"""Finds the bytes of an image, video or document that a request names, within the limits of the server."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ernie_local.errors import UsageError
from ernie_local.files import open_plain
from ernie_local.media.detail import Detail
from ernie_local.progress import Pause
from ernie_local.server.failures import ApiError, api_error, bad_request
from ernie_local.server.remote import MediaKind, fetch_media
from ernie_local.server.requests import AskedDetail
from ernie_local.session import ImagePart, VideoPart
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class AttachmentLimits:
    """What a request may bring, and how it is seen.

    detail: of images that say nothing of it. trim: cut blank margins. max_images: of one request, videos and
    documents counted, pages not. max_bytes: of one of these, decoded from base64; max_total_bytes: of all.
    media_path: the folder whose files file: addresses may name; None for none. allow_remote: whether http and
    https addresses are fetched, in at most remote_seconds each.
    """

    detail: Detail = "high"
    trim: bool = False
    max_images: int = 32
    max_bytes: int = 64 << 20
    max_total_bytes: int = 256 << 20
    media_path: Path | None = None
    allow_remote: bool = False
    remote_seconds: float = 20.0


class Attachments:
    """Opens what one request names, and counts it. pause: is called before each."""

    def __init__(self, limits: AttachmentLimits, pause: Pause = lambda: None) -> None:
        self._limits, self._pause = limits, pause
        self._num_images = self._num_bytes = 0

    def image(self, url: str, detail: AskedDetail | None) -> ImagePart:
        """The image at an address; ApiError 400 or 413 for one that is not allowed or cannot be read."""
        return self._part(self._bytes_at(url, "image"), detail)

    def video(self, url: str, settings: Mapping[str, Any]) -> VideoPart:
        """The same of a video. settings: arguments of VideoPart."""
        try:
            return VideoPart(self._bytes_at(url, "video"), **settings)
        except UsageError as error:
            raise api_error(error, "messages") from error

    def file(self, file_data: str | None) -> ImagePart:
        """A document in the request itself, as a data: address or bare base64."""
        self._count()
        if not file_data:
            raise bad_request("a file part needs file_data: files are not kept here", "messages")
        is_address = file_data[:5].lower() == "data:"
        data = _data_of(file_data, "image") if is_address else _decode_base64(file_data, "image")
        return self._part(self._weighed(data, "image"), None)

    def _bytes_at(self, url: str, kind: MediaKind) -> bytes:
        self._count()
        scheme = urlsplit(url[:64]).scheme.lower() if ":" in url[:64] else ""
        if scheme == "data":
            return self._weighed(_data_of(url, kind), kind)
        if scheme == "file":
            return self._weighed(self._file(url), kind)
        if scheme not in ("http", "https"):
            raise bad_request(
                f"{kind} addresses begin with data:, https:, http:, or file:, not {url[:16]!r}",
                "messages",
            )
        if not self._limits.allow_remote:
            raise bad_request(
                f"{kind}s are not fetched from the web: this server was started without "
                f"--allow-remote-images; send the {kind} as a data: address",
                "messages",
                "remote_images_off",
            )
        fetched = fetch_media(url, kind, self._limits.max_bytes, self._limits.remote_seconds)
        return self._weighed(fetched, kind)

    def _part(self, data: bytes, detail: AskedDetail | None) -> ImagePart:
        return attached_part(data, detail, self._limits)

    def _count(self) -> None:
        self._pause()
        self._num_images += 1
        if self._num_images > self._limits.max_images:
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"image, video or document {self._num_images} of one request, at most "
                f"{self._limits.max_images} are read",
                "too_many_images",
                "messages",
            )

    def _weighed(self, data: bytes, kind: MediaKind) -> bytes:
        """The same bytes, unless they are too many: all of a request are in memory before one is opened."""
        check_attached_size(data, self._limits, kind)
        self._num_bytes += len(data)
        if self._num_bytes > self._limits.max_total_bytes:
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the images, videos and documents of one request have {format_bytes(self._num_bytes)}, "
                f"at most {format_bytes(self._limits.max_total_bytes)} are read",
                "image_too_large",
                "messages",
            )
        return data

    def _file(self, url: str) -> bytes:
        """A file below the media path, whatever links and dots the address has."""
        folder = self._limits.media_path
        if folder is None:
            raise bad_request(
                "files of the server are not read: it was started without --media-path",
                "messages",
                "local_files_off",
            )
        outside = bad_request("the file is not below the server's --media-path", "messages")
        named = unquote(url[5:].removeprefix("//").removeprefix("localhost/"))
        try:
            # An absolute path takes the place of the folder.
            path = (folder / named).resolve()
            if "\0" in named or not path.is_relative_to(folder.resolve()) or not path.is_file():
                raise outside
            with open_plain(path) as file:
                return file.read(self._limits.max_bytes + 1)
        except (OSError, ValueError) as error:
            raise outside from error


def check_attached_size(data: bytes, limits: AttachmentLimits, kind: MediaKind = "image") -> None:
    """ApiError 413, with both sizes, for an image, video or document that is too large."""
    if len(data) > limits.max_bytes:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the {kind} has {format_bytes(len(data))}, at most {format_bytes(limits.max_bytes)} are read",
            "image_too_large",
            "messages",
        )


def attached_part(data: bytes, detail: AskedDetail | None, limits: AttachmentLimits) -> ImagePart:
    """An image or document as the model will see it. detail: None where the client says nothing of it."""
    seen: Detail = "high" if detail == "original" else detail or limits.detail
    return ImagePart(data, seen, trim=limits.trim)


def _data_of(url: str, kind: MediaKind) -> bytes:
    """The bytes of a data: address."""
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise bad_request("a data: address without a comma", "messages", "image_unreadable")
    if head.rstrip().lower().endswith(";base64"):
        return _decode_base64(body, kind)
    return unquote_to_bytes(body)


def _decode_base64(text: str, kind: MediaKind) -> bytes:
    """Bytes of base64 in either alphabet, with or without padding and line breaks."""
    try:
        squeezed = "".join(unquote(text).split()).rstrip("=").encode("ascii")
        squeezed = squeezed.translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(squeezed + b"=" * (-len(squeezed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"the {kind} is not base64", "messages", "image_unreadable") from error
