"""Finds the directory of a model by name: a path, hf:org/name[@revision], or nano. Downloads it if needed."""

from __future__ import annotations

import re
from pathlib import Path

from ernie_local.errors import ModelUnusable, UsageError, parameter
from ernie_local.file_names import is_image_name
from ernie_local.strict_json import show

NANO_DIRECTORY = Path(__file__).parent.parent / "nano"
_HUB_PREFIX = "hf:"
_NAMES = "name a directory, hf:org/name to download one, or nano for the model that comes with the package"
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_LONGEST_HINT = 80
_SENTENCE_ENDS = ("?", "!", "\uff1f", "\uff01")
_PAGES = re.compile(r":[0-9]+(-[0-9]+)?$", re.ASCII)  # of a document: invoice.pdf:1-3
# Weights, settings, tokenizers, templates and licences. No code: nothing that is downloaded is ever run.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def resolve_model(name: str) -> Path:
    """The directory of the model `name`; downloads a hub model that is not in the cache yet.

    UsageError for an empty name, ModelUnusable if there is no such directory, or the hub cannot give it.
    """
    if not name.strip():
        raise UsageError(
            "the name of the model is empty (0 characters)", "an empty path would mean this folder", _NAMES
        )
    if name == "nano":
        return _existing(NANO_DIRECTORY, "this installation lacks nano", "install ernie-local again")
    if name.startswith(_HUB_PREFIX):
        return _from_hub(name.removeprefix(_HUB_PREFIX))
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


def _from_hub(hub_name: str) -> Path:
    match = _HUB_NAME.fullmatch(hub_name)
    if match is None:
        raise ModelUnusable(
            f"model {show(_HUB_PREFIX + hub_name)} cannot be found",
            "a hub model is written hf:org/name or hf:org/name@revision",
            "for example hf:baidu/ERNIE-4.5-VL-28B-A3B-PT",
        )
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise ModelUnusable(
            f"model hf:{hub_name} cannot be found",
            f"the package huggingface_hub cannot be imported: {error}",
            "pip install huggingface_hub, or name a directory",
        ) from error
    # The bases of its HTTP error name the HTTP library that this huggingface_hub uses.
    bases = errors.HfHubHTTPError.__mro__
    http_errors = [base for base in bases if issubclass(base, Exception) and base is not Exception]
    failures: tuple[type[Exception], ...] = (*http_errors, ValueError, RuntimeError)
    repo, revision = match["repo"], match["revision"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(MODEL_FILES)))
    except failures as error:
        message = next(iter(str(error).splitlines()), "no message")
        if isinstance(error, errors.GatedRepoError):
            reason = "its terms have to be accepted first"
            hint = f"accept its terms at https://huggingface.co/{repo}, then log in with 'hf auth login'"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = f"the hub has no model {repo}, or you have no access to it"
            hint = "check the spelling; for a private model log in with 'hf auth login'"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f"the hub has {repo}, but no revision {revision}"
            hint = f"leave out @{revision}, or look at https://huggingface.co/{repo}/tree/main for the others"
        elif isinstance(error, errors.LocalEntryNotFoundError):
            reason = f"the hub cannot be reached, and the cache has no complete copy ({message})"
            hint = "connect to the network and unset HF_HUB_OFFLINE, or name a directory or nano"
        else:
            reason = f"{type(error).__name__}: {message}"
            hint = "try again: a download continues where it stopped; or name a directory or nano"
        what = f"model hf:{hub_name} could not be downloaded from the Hugging Face hub"
        raise ModelUnusable(what, reason, hint) from error
