"""Lets in only requests that may come: by Host, origin, key and size, before anything of them is read."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ernie_local.server.failures import ApiError, client_gone
from ernie_local.sizes import format_bytes

# Else what still comes of a body, or never comes, would be waited for.
_CLOSE = {"Connection": "close"}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(slots=True, kw_only=True)
class GuardSettings:
    """hosts: names that a browser may call the server by, besides those of this machine's loopback; "*" any.
    origins: pages that may read answers, "*" any. api_key: None for no key. max_body_bytes: of a request,
    which has to come within body_seconds.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    api_key: str | None = None
    max_body_bytes: int = 256 << 20
    body_seconds: float = 60.0


class Guard:
    """ASGI middleware. A page of another site can reach a local server, but does not know its name."""

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], scope["method"], headers)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, method: str, headers: Headers) -> ApiError | None:
        settings = self._settings
        if not self._knows_host(headers.get("host", "")):
            return ApiError(
                HTTPStatus.FORBIDDEN, "this server is not called by that name; --allow-host names more"
            )
        if method not in ("GET", "HEAD", "OPTIONS") and not self._knows_origin(headers):
            return ApiError(
                HTTPStatus.FORBIDDEN, "pages of other sites may not ask here; --allow-origin names some"
            )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > settings.max_body_bytes:
            return too_large(settings.max_body_bytes)
        if settings.api_key is not None and method != "OPTIONS" and not _is_open(path):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            expected = settings.api_key.encode()
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), expected):
                return ApiError(
                    HTTPStatus.UNAUTHORIZED,
                    "a key is needed: Authorization: Bearer KEY",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None

    def _knows_origin(self, headers: Headers) -> bool:
        # A browser sends some requests of any page to any server, and only hides the answer from the page.
        origin, allowed = headers.get("origin"), self._settings.origins
        is_own = origin is None or origin.partition("://")[2] == headers.get("host")
        return is_own or origin in allowed or "*" in allowed

    def _knows_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        allowed = self._settings.hosts
        return "*" in allowed or name.lower() in (*_LOOPBACK, *(one.lower() for one in allowed))


def _is_open(path: str) -> bool:
    """Whether a path needs no key: the page has to be there to ask for it."""
    is_page_file = path.startswith("/page/") and path.endswith((".js", ".css"))
    return is_page_file or path in ("/", "/health", "/v1/health")


def too_large(max_bytes: int) -> ApiError:
    """The refusal of a body beyond the limit."""
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a request of more than {format_bytes(max_bytes)}, the most that is read",
        "request_too_large",
        headers=_CLOSE,
    )


def error_response(error: ApiError) -> Response:
    """A refusal as an answer."""
    return JSONResponse(error.as_json(), status_code=error.status, headers=error.headers)


async def receive_body(request: Request, settings: GuardSettings) -> bytes:
    """The whole body; ApiError for one that is too large, too slow, or not sent to its end."""
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > settings.max_body_bytes:
                    raise too_large(settings.max_body_bytes)
    except TimeoutError:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the request did not come within {settings.body_seconds:g} s",
            headers=_CLOSE,
        ) from None
    except ClientDisconnect:
        raise client_gone() from None
    return bytes(body)


Endpoint = Callable[[Request], Awaitable[Response]]
