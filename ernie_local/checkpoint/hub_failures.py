"""Tells what went wrong with the hub: what is not there, what may not be read, and what is between."""

from __future__ import annotations

import errno
import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_local.checkpoint.published import nearest_published
from ernie_local.errors import ErnieLocalError, ModelUnusable

if TYPE_CHECKING:
    from ernie_local.checkpoint.hub_fetch import RemoteModel

_OTHERWISE = "or name a directory or nano"
_PROXY_PAGES = (407, 502, 504)
_LONGEST_WAIT = 20.0  # for the list of files; whoever has to wait longer is told so


class HubUnreachable(UserWarning):
    """The hub did not answer, and a copy of the model in its cache is used as it is."""


def list_or_cached(repo: str, revision: str) -> RemoteModel | Path:
    """What the hub has in `revision` now; where it cannot be asked, the directory of it in the cache."""
    from huggingface_hub import errors

    from ernie_local.checkpoint.hub_download import list_model
    from ernie_local.checkpoint.hub_fetch import WAITS, http_error, seconds_to_wait

    for wait in (*WAITS[:3], None):
        try:
            return list_model(repo, revision)
        except errors.RevisionNotFoundError:
            raise
        except (http_error(), errors.OfflineModeIsEnabled, ValueError) as error:
            # Who asked to be offline, or may not read it any more, may still use what is there.
            directory = _cached(repo, revision)
            if directory is not None:
                if not isinstance(error, errors.OfflineModeIsEnabled):
                    _warn_of_copy(directory, repo, error)
                return directory
            asked = seconds_to_wait(error) if isinstance(error, errors.HfHubHTTPError) else None
            if wait is None or asked is None or asked > _LONGEST_WAIT:
                raise
            time.sleep(max(wait, asked))
    raise AssertionError("the last attempt returns or raises")


def _cached(repo: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _warn_of_copy(directory: Path, repo: str, error: Exception) -> None:
    reason = _reason_and_hint(error, repo, "")[0]
    warnings.warn(
        f"hf:{repo}: {reason}; its copy of commit {directory.name[:12]} in the cache is used",
        HubUnreachable,
        stacklevel=4,
    )


@contextmanager
def told_failures(hub_name: str, repo: str, revision: str) -> Iterator[None]:
    """Inside, errors of huggingface_hub, of the network and of the disk become ours."""
    try:
        from huggingface_hub import errors

        from ernie_local.checkpoint.hub_fetch import http_error
    except ImportError as error:
        raise ModelUnusable(
            f"model hf:{hub_name} cannot be found",
            f"the package huggingface_hub cannot be imported: {error}",
            "pip install huggingface_hub, or name a directory",
        ) from error
    try:
        yield
    except ErnieLocalError:
        raise
    except (http_error(), errors.OfflineModeIsEnabled, ValueError, RuntimeError, OSError) as error:
        reason, hint = _reason_and_hint(error, repo, revision)
        what = f"model hf:{hub_name} could not be downloaded from the Hugging Face hub"
        raise ModelUnusable(what, reason, hint) from error


def _reason_and_hint(error: Exception, repo: str, revision: str) -> tuple[str, str]:
    from huggingface_hub import errors

    message = next(iter(str(error).splitlines()), "no message")
    if isinstance(error, errors.GatedRepoError):
        return (
            "its terms have to be accepted first",
            f"accept its terms at https://huggingface.co/{repo}, then log in with 'hf auth login'",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        near = nearest_published(repo)
        nearest = "" if near is None else f"hf:{near} is the nearest published name; "
        return (
            f"the hub has no model {repo}, or you have no access to it",
            f"{nearest or 'check the spelling; '}for a private model log in with 'hf auth login'",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the hub has {repo}, but no revision {revision}",
            f"leave out @{revision}, or look at https://huggingface.co/{repo}/tree/main for the others",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE forbids to ask the hub, and the cache has no copy of {repo} at {revision}",
            f"unset HF_HUB_OFFLINE, {_OTHERWISE}",
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error)
    if isinstance(error, errors.HFValidationError):
        return message, "check the spelling; for example hf:baidu/ERNIE-4.5-VL-28B-A3B-PT"
    kind = type(error).__name__
    if kind == "ProxyError":
        return (
            f"the proxy that HTTPS_PROXY or ALL_PROXY names gives no connection ({message})",
            "correct the variable, or name the hub's host in NO_PROXY",
        )
    if isinstance(error, json.JSONDecodeError):
        return (
            "what answered is not the hub: its answer is no JSON object",
            "check HF_ENDPOINT, the proxy, and whether this network wants a log-in in a browser first",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return _unwritable(error)
    if kind.startswith(("Connect", "Read")) or kind.endswith("ProtocolError"):
        return (
            f"the hub cannot be reached ({kind}: {message})",
            f"check the network, and HTTPS_PROXY if it is set; what has arrived is kept; {_OTHERWISE}",
        )
    return f"{kind}: {message}", f"try again: a download goes on where it stopped; {_OTHERWISE}"


def _refused(error: Exception) -> tuple[str, str]:
    """An answer of the hub, or of a proxy on the way to it, that is an error."""
    response = error.response  # type: ignore[attr-defined]
    status, phrase = response.status_code, f"{response.status_code} {response.reason_phrase}".strip()
    if status == 401:
        return (
            "the hub does not know the token of HF_TOKEN or 'hf auth login' (401)",
            "log in again with 'hf auth login', or unset HF_TOKEN: published models need none",
        )
    if status == 403:
        told = response.headers.get("X-Error-Message", "no reason given")
        return (
            f"the hub forbids to read this model (403: {told})",
            "give the token the right to read gated repositories, or log in with another one",
        )
    if status == 429:
        return (
            "the hub gives this address no more answers for now (429 Too Many Requests)",
            "wait some minutes: a download goes on where it stopped; with 'hf auth login' more is allowed",
        )
    if status in _PROXY_PAGES and "html" in response.headers.get("Content-Type", ""):
        return (
            f"a proxy answered in place of the hub ({phrase})",
            f"check HTTPS_PROXY and NO_PROXY, or try again later; {_OTHERWISE}",
        )
    return (
        f"the hub answered {phrase}",
        f"try again later: a download goes on where it stopped; {_OTHERWISE}",
    )


def _unwritable(error: OSError) -> tuple[str, str]:
    reason = error.strerror or str(error)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"the cache cannot be written: {error.filename} ({reason})",
            "set HF_HOME to a folder that you may write to, or name a directory with the model",
        )
    return f"{error.filename}: {reason}", f"check the disk of the cache; {_OTHERWISE}"
