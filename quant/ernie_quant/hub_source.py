"""A model on the hub as the source of a job: pinned to a commit, its weights fetched while the work goes on.

The commit is written into the work, so that a run that is resumed after the branch moved goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from ernie_local.checkpoint.hub import HUB_PREFIX, parse_hub_name
from ernie_local.checkpoint.hub_download import HubCache
from ernie_local.checkpoint.hub_failures import list_or_cached, told_failures
from ernie_local.checkpoint.hub_fetch import RemoteModel, open_range
from ernie_local.checkpoint.hub_outline import outline
from ernie_local.files import replaced
from ernie_quant.place import PIN_FILE, WORK_FOLDER
from ernie_quant.work import damaged_work

_RATE_BYTES, _RATE_SECONDS = 32 << 20, 5.0


class _Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the work was begun with: the revision as it was asked for, and its commit then."""

    repo: str
    revision: str
    commit: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """One commit of a repository. directory: has its small files, and weight files that may be mere outlines.

    model: its files, if weights are to be fetched; None where all are in the hub's cache, in `directory`.
    keeps: whether they stay in the cache. is_pinned: whether the commit is that of earlier work.
    """

    repo: str
    revision: str
    commit: str
    directory: Path
    model: RemoteModel | None
    keeps: bool
    is_pinned: bool

    @property
    def identity(self) -> str:
        """What the commit holds never changes."""
        return f"{HUB_PREFIX}{self.repo}@{self.commit}"

    def pin(self, work_folder: Path) -> None:
        """Write the commit into the work."""
        with replaced(work_folder / PIN_FILE) as new:
            new.write_bytes(msgspec.json.encode(_Pin(self.repo, self.revision, self.commit)))

    def remember(self) -> None:
        """Let the revision be found without a network, if all of its files are in the cache of the hub."""
        cache = HubCache(self.repo)
        if self.model is not None and all(cache.has(self.commit, file) for file in self.model.files):
            cache.remember(self.revision, self.commit)

    def measure_rate(self) -> float:
        """Bytes per second that arrive now, from a part of the largest file, which is thrown away.

        `model` must be there. ModelUnusable where nothing can be fetched.
        """
        assert self.model is not None
        file = max(self.model.files, key=lambda file: file.num_bytes)
        arrived = 0
        with told_failures(self.identity.removeprefix(HUB_PREFIX), self.repo, self.commit):
            began = time.monotonic()
            with open_range(self.model, file, 0, min(_RATE_BYTES, file.num_bytes)) as response:
                for block in response.iter_bytes():
                    arrived += len(block)
                    if time.monotonic() - began > _RATE_SECONDS:
                        break
        return arrived / (time.monotonic() - began)


@contextmanager
def hub_source(name: str, works: tuple[Path, ...] = (), *, keeps: bool = False) -> Iterator[HubSource]:
    """The model `hf:org/name[@revision]`, of whose weights only headers are fetched.

    works: directories that may hold the work to be resumed. If one was begun with the same name, the commit
    of then is taken. ModelUnusable where the hub has no such model or cannot be asked.
    """
    hub_name = name.removeprefix(HUB_PREFIX)
    repo, revision = parse_hub_name(hub_name)
    pinned = _pinned_commit(repo, revision, works)
    wanted = pinned or revision
    with TemporaryDirectory(prefix="ernie-local-") as folder:
        with told_failures(hub_name, repo, wanted):
            listed = list_or_cached(repo, wanted)
            if isinstance(listed, Path):
                directory, commit, model = listed, listed.name, None
            else:
                directory, commit = outline(listed, wanted, Path(folder)), listed.commit
                is_here = directory == HubCache(repo).snapshot(commit)
                model = None if is_here else listed
        yield HubSource(repo, revision, commit, directory, model, keeps, pinned is not None)


def hub_identity(name: str, directory: Path) -> str | None:
    """The identity of the model `name`, if that is one of the hub; directory: its snapshot in the cache."""
    if not name.startswith(HUB_PREFIX):
        return None
    return f"{HUB_PREFIX}{parse_hub_name(name.removeprefix(HUB_PREFIX))[0]}@{directory.name}"


def _pinned_commit(repo: str, revision: str, works: tuple[Path, ...]) -> str | None:
    for directory in works:
        path = directory / WORK_FOLDER / PIN_FILE
        if path.exists():
            try:
                pin = msgspec.json.decode(path.read_bytes(), type=_Pin)
            except (OSError, ValueError) as error:  # also what msgspec raises
                raise damaged_work(path, str(error)) from error
            if (pin.repo, pin.revision) == (repo, revision):
                return pin.commit
    return None
