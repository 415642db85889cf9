"""Fetches one file of a hub repository by ranges: goes on where it stopped, and checks the hash at the end.

huggingface_hub throws away what it has of a file when the connection is reset, and compares sizes only.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ernie_local.errors import ModelUnusable
from ernie_local.files import sync_file

# Seconds before each further attempt while nothing arrives. After some it begins anew.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_WAIT = 300.0  # that a server may ask for
_PASSING = (408, 429, 500, 502, 503, 504)
_READ_BLOCK = 1 << 20
_LEAST_BYTES = 64 << 10  # an answer with fewer is as good as none: it would never end


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it. digest: SHA-256 of a large file; SHA-1 of a small one, as git names it."""

    path: str
    num_bytes: int
    digest: str

    def new_hash(self) -> _Hash:
        """A hash to be fed with the content; in the end its hexadecimal form is `digest`."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.num_bytes}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """The files of a repository in one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.commit[:12]}"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None:
        """Take more of the content."""

    def hexdigest(self) -> str:
        """The hash of what came so far."""


class FetchStopped(Exception):
    """Another file failed, or the user stopped: this one is left as it is, to be continued."""


def http_error() -> type[Exception]:
    """The base of all errors of the HTTP library that this huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def fetch_file(
    model: RemoteModel,
    file: RemoteFile,
    partial: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Bring `partial`, which may hold the beginning of `file`, to the whole of it, and check its hash.

    on_bytes: gets the number of bytes of each piece that arrives; a negative number for bytes that have to be
    fetched again. A lost connection, a busy or failing server: tries again for half a minute without a byte.
    ModelUnusable, and `partial` is removed, where the hash differs; OSError of the disk and errors of
    huggingface_hub as they are; FetchStopped soon after `stop` is set.
    """
    stop = threading.Event() if stop is None else stop
    with partial.open("ab+") as out:
        if out.tell() > file.num_bytes:
            _empty(out)
        digest = _hash_of(out, file)
        num_failures = 0
        while (start := out.tell()) < file.num_bytes:
            wait: float | None = None
            try:
                with open_range(model, file, start) as response:
                    if start and response.status_code == 200:  # the server knows no ranges
                        on_bytes(-start)
                        _empty(out)
                        digest = file.new_hash()
                    _append(response, file, out, digest, on_bytes, stop)
                arrived = out.tell() - start
                if arrived < min(_LEAST_BYTES, file.num_bytes - start):
                    raise ConnectionError(f"the answer for byte {start} of {file.path} had {arrived} bytes")
            except (http_error(), ConnectionError) as error:
                wait = seconds_to_wait(error)
                num_failures = 0 if out.tell() - start >= _LEAST_BYTES else num_failures + 1
                if wait is None or num_failures > len(WAITS):
                    raise
                wait = max(wait, WAITS[num_failures - 1] if num_failures else 0)
            if stop.wait(wait or 0):
                raise FetchStopped
    sync_file(partial)  # a rename may reach the disk before the content
    if digest.hexdigest() != file.digest:
        partial.unlink()
        raise ModelUnusable(
            f"{file.path} of {model}: the hash of the {file.num_bytes} bytes that arrived is "
            f"{digest.hexdigest()[:16]}..., the hub names {file.digest[:16]}...",
            "the file was damaged on the way, or a proxy or a mirror gave another one; it was removed",
            "try again; if it stays so, without a proxy and without HF_ENDPOINT",
        )


@contextmanager
def open_range(model: RemoteModel, file: RemoteFile, start: int, end: int | None = None) -> Iterator[Any]:
    """An answer with the bytes of `file` from `start`, up to `end` if given, to be read by `iter_bytes()`.

    ModelUnusable where the server gives another commit than that of `model`.
    """
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    url = hf_hub_url(model.repo, file.path, revision=model.commit)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        hf_raise_for_status(response)
        _check_commit(model, file, response)
        yield response


def _check_commit(model: RemoteModel, file: RemoteFile, response: Any) -> None:
    """The hub names the commit in its own answer, not in that of the storage it points to."""
    answers = [*response.history, response]
    commits = {answer.headers["X-Repo-Commit"] for answer in answers if "X-Repo-Commit" in answer.headers}
    if commits - {model.commit}:
        raise ModelUnusable(
            f"{file.path} of {model} comes from commit {min(commits - {model.commit})[:12]}",
            "files of two commits do not belong together, and only the commit that was asked for is taken",
            "try again; if HF_ENDPOINT names a mirror, without it",
        )


def _empty(out: IO[bytes]) -> None:
    out.seek(0)
    out.truncate()


def _hash_of(out: IO[bytes], file: RemoteFile) -> _Hash:
    """Of what is in the file already; leaves it at its end."""
    digest = file.new_hash()
    out.seek(0)
    while block := out.read(_READ_BLOCK):
        digest.update(block)
    out.seek(0, os.SEEK_END)
    return digest


def _append(
    response: Any,
    file: RemoteFile,
    out: IO[bytes],
    digest: _Hash,
    on_bytes: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Write what arrives as it arrives, at most to the size of the file."""
    for block in response.iter_bytes():
        if stop.is_set():
            raise FetchStopped
        kept = block[: file.num_bytes - out.tell()]
        out.write(kept)
        digest.update(kept)
        on_bytes(len(kept))
        if out.tell() == file.num_bytes:
            return


def seconds_to_wait(error: Exception) -> float | None:
    """How long the server asks to wait before another attempt; None for an error that would come again."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return None if type(error).__name__ in ("ProxyError", "UnsupportedProtocol") else 0.0
    if error.response.status_code not in _PASSING:
        return None
    asked = error.response.headers.get("Retry-After", "")
    return min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else 0.0
