"""Finds the models on this machine, in the cache of the hub and on disk, and removes them.

A model is a directory whose config.json names a kind that this program runs. Nothing else is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import MODEL_TYPES, read_config
from ernie_local.errors import ErnieLocalError, ModelUnusable
from ernie_local.sizes import format_bytes
from ernie_local.strict_json import read_json_object

_SHORTEST_COMMIT = 7


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on this machine. num_bytes: of all its files, and of what has arrived of a download.

    bits_per_weight is None, and `fault` says why, where it is not whole by config, index and headers.
    """

    name: str  # as commands take it
    directory: Path
    num_bytes: int
    bits_per_weight: float | None
    fault: str | None
    refs: tuple[str, ...] = ()  # names of the revision in the cache of the hub


@dataclass(slots=True)
class CachedModels:
    """What is in the cache of the hub. notes: a line for each repository that cannot be read."""

    folder: Path
    models: list[StoredModel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_model(directory: Path) -> bool:
    """Whether its config.json names a kind of model that this program runs."""
    try:
        return read_json_object(directory / "config.json").get("model_type") in MODEL_TYPES
    except ModelUnusable:
        return False


def describe_model(name: str, directory: Path, refs: tuple[str, ...] = ()) -> StoredModel:
    """What a model is, by its headers."""
    from ernie_local.checkpoint.files import read_stored_tensors
    from ernie_local.checkpoint.index import account
    from ernie_local.checkpoint.parts import model_parts, stored_tensors, sum_of_parts

    num_bytes = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    bits = fault = None
    try:
        config = read_config(directory)
        accounts = account(directory, read_stored_tensors(directory), config)
        parts = model_parts(stored_tensors(accounts, config), config)
        bits = sum_of_parts("all", parts).bits_per_weight
    except ModelUnusable as error:
        fault = error.what.replace(f"{directory}/", "")
    return StoredModel(name, directory, num_bytes, bits, fault, refs)


def models_on_disk(folder: Path) -> Iterator[StoredModel]:
    """The model in `folder`, or those in the folders directly in it. ErnieLocalError if it cannot be read."""
    try:
        if is_model(folder):
            yield describe_model(str(folder), folder)
            return
        below = sorted(path for path in folder.iterdir() if path.is_dir() and is_model(path))
        for path in below:
            # A folder named nano would be taken for the model in the package.
            yield describe_model(str(path) if len(path.parts) > 1 else f"./{path}", path)
    except OSError as error:
        raise ErnieLocalError(
            f"{folder} cannot be read", error.strerror or str(error), "name a folder that has models in it"
        ) from error


def cached_models() -> CachedModels:
    """The models in the cache of the hub, each revision by itself."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    found = CachedModels(Path(constants.HF_HUB_CACHE))
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return found
    found.notes = [str(warning) for warning in cache.warnings]
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
        if repo.repo_type != "model":
            continue
        for revision in sorted(repo.revisions, key=lambda revision: -revision.last_modified):
            if not is_model(revision.snapshot_path):
                continue
            refs = tuple(sorted(revision.refs))
            at = "" if "main" in refs else f"@{next(iter(refs), revision.commit_hash)}"
            model = describe_model(f"hf:{repo.repo_id}{at}", revision.snapshot_path, refs)
            if model.fault is not None:
                model = replace(model, num_bytes=model.num_bytes + _partial_bytes(repo.repo_path))
            found.models.append(model)
    return found


def _partial_bytes(repo: Path) -> int:
    """Of files that have not arrived completely."""
    return sum(path.stat().st_size for path in repo.glob("blobs/*.incomplete"))


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to be removed, and how many bytes that frees. commits: of the cache; empty for a directory."""

    models: tuple[StoredModel, ...]
    num_bytes: int
    commits: tuple[str, ...] = ()

    def __str__(self) -> str:
        places = ", ".join(str(model.directory) for model in self.models)
        return f"{format_bytes(self.num_bytes)}: {places}"

    def execute(self) -> None:
        """Remove it. OSError where the system refuses."""
        if self.commits:
            from huggingface_hub import constants, scan_cache_dir

            scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*self.commits).execute()
            return
        for model in self.models:
            # The one that makes it a model comes last: what is left after an error can be removed again.
            files = sorted(
                model.directory.iterdir(), key=lambda path: (path.name == "config.json", path.name)
            )
            for path in files:
                path.unlink()
            model.directory.rmdir()


def plan_removal(name: str) -> Removal:
    """What removing `name` means: hf:org/name[@revision] in the cache, or a directory.

    ModelUnusable where there is no such model, ErnieLocalError for a directory that also has other things in
    it, that a link leads to or that is in use as the current one.
    """
    if name.startswith("hf:"):
        return _plan_of_cache(name)
    directory = Path(name).expanduser()
    if name == "nano" or directory.resolve() == NANO_DIRECTORY.resolve():
        raise _refused(name, "it is a part of this program", "uninstall ernie-local to remove it")
    if directory.is_symlink():
        raise _refused(
            name, f"it is a link to {directory.resolve()}", "name that directory, or remove the link"
        )
    if not directory.is_dir() or not is_model(directory):
        raise ModelUnusable(
            f"{name} is not a model",
            f"a model is a directory whose config.json names one of {', '.join(MODEL_TYPES)}",
            "'ernie-local models' lists what there is",
        )
    if Path.cwd().is_relative_to(directory.resolve()):
        raise _refused(name, "it is the current directory, or holds it", "change to another directory first")
    model = describe_model(name, directory)
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            raise _refused(
                name, f"{path.name} is a link to {path.resolve()}", "name hf:org/name if it is in the cache"
            )
        if not path.is_file():
            raise _refused(name, f"it also holds {path.name}, which is no file", "move that away first")
    return Removal((model,), model.num_bytes)


def _plan_of_cache(name: str) -> Removal:
    from huggingface_hub import scan_cache_dir

    repo, _, revision = name.removeprefix("hf:").partition("@")
    cached = cached_models()
    models = [model for model in cached.models if model.name.partition("@")[0] == f"hf:{repo}"]
    if revision:
        is_commit = len(revision) >= _SHORTEST_COMMIT
        models = [
            model
            for model in models
            if revision in model.refs or (is_commit and model.directory.name.startswith(revision))
        ]
    if not models:
        known = ", ".join(sorted({model.name for model in cached.models})) or "no ERNIE-4.5-VL model"
        raise ModelUnusable(
            f"{name} is not in the cache of the hub", f"{cached.folder} has {known}", "'ernie-local models'"
        )
    commits = tuple(model.directory.name for model in models)
    strategy = scan_cache_dir(cached.folder).delete_revisions(*commits)
    # A repository without any revision left goes with all that it has.
    partial = sum(_partial_bytes(repo) for repo in strategy.repos)
    return Removal(tuple(models), strategy.expected_freed_size + partial, commits)


def _refused(name: str, why: str, hint: str) -> ErnieLocalError:
    return ErnieLocalError(f"{name} is not removed", why, hint)
