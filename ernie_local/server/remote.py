"""Fetches an image or a video from the web: bounded in bytes, time and redirects, from public hosts only.

A name is resolved once and the connection goes to that address, so that it cannot become a private one
between the check and the use.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Literal, TypeAlias
from urllib.parse import urljoin, urlsplit

import httpcore2

from ernie_local.escapes import printable_line
from ernie_local.server.failures import ApiError, bad_request
from ernie_local.sizes import format_bytes

MediaKind: TypeAlias = Literal["image", "video"]
MAX_REDIRECTS = 3
_ACCEPTED = {"image": "image/*, application/pdf", "video": "video/*, image/gif, image/webp"}
_CONNECT_SECONDS = 10.0


class _PublicHosts(httpcore2.SyncBackend):
    """Connects to addresses that anybody can reach, and to no other."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """A connection to the first address of the host; bad_request where any of them is not public."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _refused(host, f"the host is unknown ({error})") from error
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            if not is_public(address):
                raise _refused(host, "the host has an address that is not public")
        return super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)


def is_public(address: str) -> bool:
    """Whether an IP address is one that any host of the internet may have."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses of version 4 hide in some of version 6.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


def fetch_media(url: str, kind: MediaKind, max_bytes: int, max_seconds: float) -> bytes:
    """The bytes at an http or https address; ApiError 400 or 413 that says what was wrong with it."""
    deadline = time.monotonic() + max_seconds
    with httpcore2.ConnectionPool(network_backend=_PublicHosts(), retries=0) as pool:
        for _ in range(MAX_REDIRECTS + 1):
            if not url.isascii():  # letters of other scripts may become those of an address
                raise _refused(url, "it is no web address")
            if urlsplit(url).scheme not in ("http", "https"):
                raise _refused(url, "only http and https are fetched")
            try:
                data, location = _request(pool, url, kind, max_bytes, deadline)
            except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
                raise _refused(url, f"it could not be read ({type(error).__name__})") from error
            except (httpcore2.UnsupportedProtocol, ValueError) as error:
                raise _refused(url, "it is no web address") from error
            if location is None:
                return data
            url = urljoin(url, location)
    raise _refused(url, f"it was forwarded more than {MAX_REDIRECTS} times")


def _request(
    pool: httpcore2.ConnectionPool, url: str, kind: MediaKind, max_bytes: int, deadline: float
) -> tuple[bytes, str | None]:
    """The body, or the address that the host sends us to."""
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), _CONNECT_SECONDS)
    headers = [("Accept", _ACCEPTED[kind]), ("User-Agent", "ernie-local")]
    with pool.stream("GET", url, headers=headers, extensions={"timeout": timeout}) as response:
        if response.status in (301, 302, 303, 307, 308):
            location = {name.lower(): value for name, value in response.headers}.get(b"location", b"")
            return b"", location.decode("latin-1")
        if response.status != HTTPStatus.OK:
            raise _refused(url, f"its host answers with status {response.status}")
        data = bytearray()
        for piece in response.iter_stream():
            data += piece
            if len(data) > max_bytes:
                raise ApiError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"{_shown(url)} has more than {format_bytes(max_bytes)}, the most that is fetched",
                    "image_too_large",
                    "messages",
                )
            if time.monotonic() > deadline:
                raise _refused(url, "it took too long")
        return bytes(data), None


def _refused(url: str, why: str) -> ApiError:
    return bad_request(f"{_shown(url)} is not used: {why}", "messages", "image_unreadable")


def _shown(url: str) -> str:
    shortened = url if len(url) <= 120 else url[:117] + "..."
    return printable_line(shortened)
