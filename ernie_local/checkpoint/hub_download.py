"""Downloads a model into the cache of huggingface_hub, in its layout, so that other programs find it there.

A commit is chosen first, and all files come from it. The small ones come first and are looked at; weights
follow, four files at a time. A file lies in the snapshot only when it is whole and its hash is right.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import cast

from ernie_local.checkpoint.hub_fetch import FetchStopped, RemoteFile, RemoteModel, fetch_file
from ernie_local.checkpoint.published import refusal_of
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, ModelUnusable
from ernie_local.file_names import MODEL_FILES
from ernie_local.files import free_disk_bytes
from ernie_local.progress import OnProgress
from ernie_local.sizes import format_bytes
from ernie_local.strict_json import show

COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_SECONDS_FOR_LISTING = 20.0
_NUM_AT_A_TIME = 4
# The suffix by which `hf cache` finds what is left of a download.
_PARTIAL_SUFFIX = ".ernie-local.incomplete"


@dataclass(frozen=True, slots=True)
class HubCache:
    """The folder of one repository in the cache."""

    repo: str

    @property
    def folder(self) -> Path:
        """Where its blobs, snapshots and refs lie."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo, repo_type="model")

    def snapshot(self, commit: str) -> Path:
        """The directory of a commit."""
        return self.folder / "snapshots" / commit

    def pointer(self, commit: str, file: RemoteFile) -> Path:
        """Where a file of a commit is found."""
        return self.snapshot(commit) / file.path

    def blob(self, file: RemoteFile) -> Path:
        """Where the content lies that pointers of several commits may lead to."""
        return self.folder / "blobs" / file.digest

    def partial(self, file: RemoteFile) -> Path:
        """What has arrived of a file that is not whole yet."""
        return self.folder / "blobs" / f"{file.digest}{_PARTIAL_SUFFIX}"

    def has(self, commit: str, file: RemoteFile) -> bool:
        """Whether the commit has the file, in its size."""
        return _size(self.pointer(commit, file)) == file.num_bytes

    def present_bytes(self, commit: str, file: RemoteFile) -> int:
        """Bytes of a file that need not be fetched."""
        if self.has(commit, file) or _size(self.blob(file)) == file.num_bytes:
            return file.num_bytes
        return min(_size(self.partial(file)) or 0, file.num_bytes)

    def point(self, commit: str, file: RemoteFile) -> None:
        """Let the commit have the file whose blob is whole."""
        pointer, blob = self.pointer(commit, file), self.blob(file)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except FileExistsError:  # another process was faster
            pass
        except OSError:  # a file system without links, or no right to make them
            blob.replace(pointer)

    def remember(self, revision: str, commit: str) -> None:
        """Let the name of a branch or tag be known without a network. Without effect in a read-only cache."""
        if COMMIT.fullmatch(revision):
            return
        ref = self.folder / "refs" / revision
        with suppress(OSError):
            if not ref.is_file() or ref.read_text(encoding="utf-8") != commit:
                ref.parent.mkdir(parents=True, exist_ok=True)
                new = ref.with_name(f"{ref.name}.new")
                new.write_text(commit, encoding="utf-8")
                new.replace(ref)


def list_model(repo: str, revision: str) -> RemoteModel:
    """The files of the model in the commit that `revision` names now.

    Errors of huggingface_hub as they are; ValueError for an answer that cannot be.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_SECONDS_FOR_LISTING)
        # A size that is missing is refused below.
        files = [
            RemoteFile(one.rfilename, cast("int", one.size), one.lfs.sha256 if one.lfs else one.blob_id or "")
            for one in info.siblings or ()
            if any(fnmatch(one.rfilename, pattern) for pattern in MODEL_FILES)
        ]
        commit = info.sha or ""
        for text, pattern in [(commit, COMMIT), *((file.digest, _DIGEST) for file in files)]:
            if pattern.fullmatch(text) is None:
                raise ValueError(f"the answer about {repo} has no commit, or a file without a hash")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # huggingface_hub reads an answer as it comes, without a look at its types.
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the answer about {repo} has another form than one of the hub ({what})") from error
    for file in files:
        if ".." in PurePosixPath(file.path).parts or PurePosixPath(file.path).is_absolute():
            raise ValueError(f"{repo} has a file {show(file.path)}, which would lie outside of the model")
        if type(file.num_bytes) is not int or file.num_bytes < 0:
            raise ValueError(f"{repo} has a file {show(file.path)} of {show(file.num_bytes)} bytes")
    return RemoteModel(repo, commit, tuple(sorted(files, key=lambda file: file.path)))


def weight_files(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Those of them that hold weights."""
    return [file for file in files if file.path.endswith(".safetensors")]


def download(
    model: RemoteModel, revision: str, on_progress: OnProgress | None = None, *, with_weights: bool = True
) -> Path:
    """The directory with the files of `model`, after all that were missing have arrived.

    on_progress: gets the name of the model, bytes that are here, and bytes of all.
    DoesNotFit, before the first byte, where the disk has too little room; ModelUnusable for a config.json
    that this program does not run, before the weights come, and for a file with a wrong hash.
    """
    cache = HubCache(model.repo)
    snapshot = cache.snapshot(model.commit)
    weights = weight_files(model.files)
    small = [file for file in model.files if file not in weights]
    wanted = model.files if with_weights else tuple(small)
    if all(file.path != "config.json" for file in model.files):
        raise ModelUnusable(
            f"hf:{model.repo} has no config.json among its {len(model.files)} files",
            "it holds the sizes of the model",
            "'ernie-local models' lists the repositories with ERNIE-4.5-VL models",
        )
    missing = [file for file in wanted if not cache.has(model.commit, file)]
    if missing:
        _check_room(model, missing, cache)
        arrival = _Arrival(model, wanted, cache, on_progress)
        _fetch_all(model, [file for file in small if file in missing], cache, arrival)
        _check_config(model, snapshot)
        _fetch_all(model, [file for file in weights if file in missing], cache, arrival)
    if with_weights:  # without a network, the last whole commit is what is wanted
        cache.remember(revision, model.commit)
    return snapshot


def _check_config(model: RemoteModel, snapshot: Path) -> None:
    try:
        read_config(snapshot)
    except ModelUnusable as error:
        known = refusal_of(model.repo)
        if known is None:
            raise
        raise ModelUnusable(error.what, known, "'ernie-local models' lists those that run") from error


class _Arrival:
    """Adds up what has arrived, for `on_progress`. Called by several threads."""

    def __init__(
        self,
        model: RemoteModel,
        files: Sequence[RemoteFile],
        cache: HubCache,
        on_progress: OnProgress | None,
    ) -> None:
        self._model, self._on_progress = model, on_progress
        self._lock = threading.Lock()
        self._total = sum(file.num_bytes for file in files)
        self._done = sum(cache.present_bytes(model.commit, file) for file in files)
        self(0)

    def __call__(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            if self._on_progress is not None:
                self._on_progress(f"hf:{self._model.repo}", self._done, self._total)


def _check_room(model: RemoteModel, missing: Sequence[RemoteFile], cache: HubCache) -> None:
    if _missing_bytes(model, missing, cache) > free_disk_bytes(cache.folder):
        raise _no_room(model, missing, cache)


def _no_room(model: RemoteModel, missing: Sequence[RemoteFile], cache: HubCache) -> DoesNotFit:
    needed, free = _missing_bytes(model, missing, cache), free_disk_bytes(cache.folder)
    return DoesNotFit(
        f"hf:{model.repo} needs {format_bytes(needed)} more on the disk of {cache.folder.parent}, "
        f"{format_bytes(free)} are free",
        "the cache of the hub keeps whole files",
        "free that much there, remove a model with 'ernie-local models remove', or set HF_HOME to a folder "
        "on a larger disk",
    )


def _missing_bytes(model: RemoteModel, files: Sequence[RemoteFile], cache: HubCache) -> int:
    return sum(file.num_bytes - cache.present_bytes(model.commit, file) for file in files)


def _fetch_all(model: RemoteModel, files: Sequence[RemoteFile], cache: HubCache, arrival: _Arrival) -> None:
    """Fetch files at the same time. The first error stops all; what has arrived is kept."""
    stop = threading.Event()
    with ThreadPoolExecutor(_NUM_AT_A_TIME) as pool:
        try:  # around the start of threads too: Ctrl-C may come when the first one has begun
            tasks = [pool.submit(_fetch, model, file, cache, arrival, stop) for file in files]
            for task in as_completed(tasks):
                task.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(model, files, cache) from error
            raise


def _fetch(
    model: RemoteModel, file: RemoteFile, cache: HubCache, arrival: _Arrival, stop: threading.Event
) -> None:
    blob, partial = cache.blob(file), cache.partial(file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cache, file, stop):
        if _size(blob) != file.num_bytes:
            fetch_file(model, file, partial, arrival, stop)
            partial.replace(blob)
        cache.point(model.commit, file)


@contextmanager
def _locked(cache: HubCache, file: RemoteFile, stop: threading.Event) -> Iterator[None]:
    """Inside, no other program downloads the file: the lock is that of huggingface_hub."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    path = cache.folder.parent / ".locks" / cache.folder.name / f"{file.digest}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        is_locked = False
        while not is_locked:
            if stop.is_set():
                raise FetchStopped
            with suppress(TimeoutError):
                stack.enter_context(WeakFileLock(path, timeout=1))
                is_locked = True
        yield


def _size(path: Path) -> int | None:
    """Of the file behind links; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None
