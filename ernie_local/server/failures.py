"""Turns what goes wrong into an HTTP status and the error object that clients of OpenAI's interface read."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from ernie_local.errors import (
    DoesNotFit,
    ErnieLocalError,
    InputUnreadable,
    Interrupted,
    ModelUnusable,
    OutOfMemory,
    UsageError,
)
from ernie_local.media.video_sampling import split_cut

# Arguments of the library that are called otherwise in a request.
_FIELDS = {
    "context_size": "--ctx-size of the server",
    "image_tokens": "--image-tokens of the server",
    "thinking": "reasoning_effort",
    "text": "messages",
}
_MEDIA_FIELDS = {"images": "image_url", "videos": "video_url"}


class ApiError(Exception):
    """A refusal. code: for programs, such as context_length_exceeded; param: the field that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """The value of `type`, by which the clients choose their exception."""
        kinds: dict[int, str] = {
            HTTPStatus.UNAUTHORIZED: "authentication_error",
            HTTPStatus.FORBIDDEN: "permission_error",
            HTTPStatus.NOT_FOUND: "not_found_error",
            HTTPStatus.SERVICE_UNAVAILABLE: "unavailable_error",
            HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
        }
        return kinds.get(self.status, "invalid_request_error")

    def as_json(self) -> dict[str, object]:
        """The object of the answer's body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that means nothing here."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, code, param)


def client_gone() -> ApiError:
    """For a client that has closed the connection: nobody reads it, but it is counted."""
    return ApiError(499, "the client has gone")


def api_error(error: BaseException, param: str | None = None) -> ApiError:
    """What a client is told of an exception: of a defect nothing but that it is one.

    param: the field that is at fault, where the caller knows it.
    """
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, ErnieLocalError):
        return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log has the details")
    what, why, hint = error.spelled(_spelled_field)
    message = f"{what}: {why}; try: {hint}"
    if isinstance(error, DoesNotFit):
        # Some clients, such as litellm, tell this refusal from others by these words alone.
        return bad_request(f"the prompt is too long: {message}", "messages", "context_length_exceeded")
    if isinstance(error, InputUnreadable):
        return bad_request(message, "messages", "image_unreadable")
    if isinstance(error, UsageError):
        return bad_request(message, param)
    if isinstance(error, Interrupted):
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, "stopped")
    if isinstance(error, OutOfMemory | ModelUnusable):
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message)
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message)


def _spelled_field(name: str, value: str) -> str:
    if name in _MEDIA_FIELDS:  # a client names no file, and a part of one by fields of its own
        _, start, end = split_cut(value)
        ends = [f"{one} {at:g}" for one, at in (("start", start), ("end", end)) if at is not None]
        return " with ".join([_MEDIA_FIELDS[name], *([" and ".join(ends)] if ends else [])])
    spelled = _FIELDS.get(name, name)
    return f"{spelled} {value}" if value else spelled
