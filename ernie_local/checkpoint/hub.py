"""Finds the directory of a model by name: a path, hf:org/name[@revision], or nano. Downloads it if needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_local.checkpoint.hub_failures import list_or_cached, told_failures
from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.file_names import is_image_name
from ernie_local.progress import OnProgress
from ernie_local.strict_json import show

NANO_DIRECTORY = Path(__file__).parent.parent / "nano"
HUB_PREFIX = "hf:"
_NAMES = "name a directory, hf:org/name to download one, or nano for the model that comes with the package"
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_LONGEST_HINT = 80
_SENTENCE_ENDS = ("?", "!", "\uff1f", "\uff01")
_PAGES = re.compile(r":[0-9]+(-[0-9]+)?$", re.ASCII)  # of a document: invoice.pdf:1-3


def resolve_model(name: str, on_progress: OnProgress | None = None) -> Path:
    """The directory of the model `name`; downloads what is not in the cache of a hub model yet.

    on_progress: gets the name of the model that is downloaded, bytes that are here, and bytes of all.
    UsageError for an empty name, ModelUnusable if there is no such directory, or the hub cannot give it;
    DoesNotFit where the disk has too little room. HubUnreachable warns that a copy in the cache is used.
    """
    if not name.strip():
        raise UsageError(
            "the name of the model is empty (0 characters)", "an empty path would mean this folder", _NAMES
        )
    if name == "nano":
        return _existing(NANO_DIRECTORY, "this installation lacks nano", "install ernie-local again")
    if name.startswith(HUB_PREFIX):
        return _from_hub(name.removeprefix(HUB_PREFIX), on_progress)
    return _existing(_expanded(name), "no such directory", _probable_meaning(name))


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # of an unknown user
        return Path(name)


def _probable_meaning(name: str) -> str:
    """What to try instead of a name that is no model: it may be an image, a question, or a hub model."""
    fits = len(name) <= _LONGEST_HINT and name.isprintable()
    if is_image_name(_PAGES.sub("", name)):
        return f"for a question about it: {parameter('images', name if fits else 'FILE')}"
    is_sentence = len(name.split()) > 1 or name.endswith(_SENTENCE_ENDS)
    if is_sentence and not _is_below_a_folder(name):
        return f"for a question: {parameter('text', name if fits else 'TEXT')}"
    if _HUB_NAME.fullmatch(name) and not name.startswith(".") and not _is_below_a_folder(name):
        return f"write hf:{name} to download it, or check the path"
    return _NAMES


def _is_below_a_folder(name: str) -> bool:
    """Whether `name` is a path whose last part alone is wrong."""
    try:
        return "/" in name and Path(name).parent.is_dir()
    except (OSError, ValueError):
        return False


def _existing(directory: Path, reason: str, hint: str) -> Path:
    try:
        if directory.is_dir():
            return directory
        is_file = directory.is_file()
    except (OSError, ValueError) as error:  # a name too long for the system, or with a zero byte in it
        raise ModelUnusable(f"model {show(str(directory))} cannot be found", str(error), hint) from error
    if is_file:
        reason = "it is a file, and a model is the directory with config.json and the weights"
        if hint == _NAMES:
            hint = f"name the directory; if the file is an image: {parameter('images', str(directory))}"
    raise ModelUnusable(f"model {show(str(directory))} cannot be found", reason, hint)


def parse_hub_name(hub_name: str) -> tuple[str, str]:
    """Repository and revision of `org/name[@revision]`; ModelUnusable for what can be neither."""
    match = _HUB_NAME.fullmatch(hub_name)
    if match is None or ".." in (match["revision"] or "").split("/"):
        raise ModelUnusable(
            f"model {show(HUB_PREFIX + hub_name)} cannot be found",
            "a hub model is written hf:org/name or hf:org/name@revision",
            "for example hf:baidu/ERNIE-4.5-VL-28B-A3B-PT",
        )
    return match["repo"], match["revision"] or "main"


def _from_hub(hub_name: str, on_progress: OnProgress | None) -> Path:
    repo, revision = parse_hub_name(hub_name)
    with told_failures(hub_name, repo, revision):
        from ernie_local.checkpoint.hub_download import download

        listed = list_or_cached(repo, revision)
        return listed if isinstance(listed, Path) else download(listed, revision, on_progress)


@contextmanager
def outlined_model(name: str) -> Iterator[Path]:
    """The directory of the model `name`, for those who read small files and headers and no weights.

    Of a hub model whose weights are not here, only that much is fetched: meanwhile there is a directory in
    which each file of weights has its header and its size, and holes in place of the weights. Errors as of
    `resolve_model`.
    """
    if not name.startswith(HUB_PREFIX):
        yield resolve_model(name)
        return
    hub_name = name.removeprefix(HUB_PREFIX)
    repo, revision = parse_hub_name(hub_name)
    with TemporaryDirectory(prefix="ernie-local-") as folder:
        with told_failures(hub_name, repo, revision):
            from ernie_local.checkpoint.hub_outline import outline

            listed = list_or_cached(repo, revision)
            directory = listed if isinstance(listed, Path) else outline(listed, revision, Path(folder))
        yield directory
