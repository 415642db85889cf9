"""Finds the bytes of an image or document that a request names, within the limits of the server."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ernie_local.files import open_plain
from ernie_local.media.detail import Detail
from ernie_local.server.failures import ApiError, bad_request
from ernie_local.server.remote import fetch_image
from ernie_local.server.requests import AskedDetail
from ernie_local.session import ImagePart
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, slots=True)
class AttachmentLimits:
    """What a request may bring, and how it is seen.

    detail: of images that say nothing of it. trim: cut blank margins. max_images: of one request, pages not
    counted. max_bytes: of one image or document, decoded from base64. media_path: the folder whose files
    file: addresses may name; None for none. allow_remote: whether http and https addresses are fetched, in at
    most remote_seconds each.
    """

    detail: Detail = "high"
    trim: bool = False
    max_images: int = 32
    max_bytes: int = 64 << 20
    media_path: Path | None = None
    allow_remote: bool = False
    remote_seconds: float = 20.0


class Attachments:
    """Opens what one request names, and counts it."""

    def __init__(self, limits: AttachmentLimits) -> None:
        self._limits = limits
        self._num_images = 0

    def image(self, url: str, detail: AskedDetail | None) -> ImagePart:
        """The image at an address; ApiError 400 or 413 for one that is not allowed or cannot be read."""
        self._count()
        scheme = urlsplit(url[:64]).scheme.lower() if ":" in url[:64] else ""
        if scheme == "data":
            return self._part(self._bounded(_data_of(url)), detail)
        if scheme == "file":
            return self._part(self._file(url), detail)
        if scheme in ("http", "https"):
            if not self._limits.allow_remote:
                raise bad_request(
                    "images are not fetched from the web: this server was started without "
                    "--allow-remote-images; send the image as a data: address",
                    "messages",
                    "remote_images_off",
                )
            limits = self._limits
            return self._part(fetch_image(url, limits.max_bytes, limits.remote_seconds), detail)
        raise bad_request(
            f"an image address begins with data:, https:, http: or file:, not with {url[:16]!r}", "messages"
        )

    def file(self, file_data: str | None) -> ImagePart:
        """A document in the request itself, as a data: address or bare base64."""
        self._count()
        if not file_data:
            raise bad_request("a file part needs file_data: files are not kept here", "messages")
        data = _data_of(file_data) if file_data[:5].lower() == "data:" else _decode_base64(file_data)
        return self._part(self._bounded(data), None)

    def _part(self, data: bytes, detail: AskedDetail | None) -> ImagePart:
        return attached_part(data, detail, self._limits)

    def _count(self) -> None:
        self._num_images += 1
        if self._num_images > self._limits.max_images:
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than {self._limits.max_images} images and documents in one request",
                "too_many_images",
                "messages",
            )

    def _bounded(self, data: bytes) -> bytes:
        check_attached_size(data, self._limits)
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
                return self._bounded(file.read(self._limits.max_bytes + 1))
        except (OSError, ValueError) as error:
            raise outside from error


def check_attached_size(data: bytes, limits: AttachmentLimits) -> None:
    """ApiError 413, with both sizes, for an image or document that is too large."""
    if len(data) > limits.max_bytes:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"an image of {format_bytes(len(data))}, at most {format_bytes(limits.max_bytes)} are read",
            "image_too_large",
            "messages",
        )


def attached_part(data: bytes, detail: AskedDetail | None, limits: AttachmentLimits) -> ImagePart:
    """An image or document as the model will see it. detail: None where the client says nothing of it."""
    seen: Detail = "high" if detail == "original" else detail or limits.detail
    return ImagePart(data, seen, trim=limits.trim)


def _data_of(url: str) -> bytes:
    """The bytes of a data: address."""
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise bad_request("a data: address without a comma", "messages", "image_unreadable")
    if head.rstrip().lower().endswith(";base64"):
        return _decode_base64(body)
    return unquote_to_bytes(body)


def _decode_base64(text: str) -> bytes:
    """Bytes of base64 in either alphabet, with or without padding and line breaks."""
    try:
        squeezed = "".join(unquote(text).split()).rstrip("=").encode("ascii")
        squeezed = squeezed.translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(squeezed + b"=" * (-len(squeezed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request("an image that is not base64", "messages", "image_unreadable") from error
