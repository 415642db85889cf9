"""Fetches the weight files of a hub model ahead of their use, and deletes them after it.

A thread of its own fetches one file after the other, while the caller reads those that are there. A file
appears under its name when it is whole and its hash is right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ernie_local.checkpoint.hub_download import HubCache, download
from ernie_local.checkpoint.hub_failures import told_failures
from ernie_local.checkpoint.hub_fetch import FetchStopped, RemoteFile, RemoteModel, fetch_file
from ernie_local.errors import ErnieLocalError
from ernie_local.files import open_descriptor, sync_names
from ernie_quant.shard_uses import ShardUses
from ernie_quant.work import tell_nobody

_SECONDS_BETWEEN_CHECKS = 0.2  # whether the caller is to stop, while it waits for a file
_SECONDS_TO_STOP = 10.0
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Download:
    """What is fetched of a source. num_fetches: with files that are fetched again; num_bytes: of all fetches.

    most_files: that are on the disk at any time, besides those in the cache of the hub; disk_bytes: of these,
    0 where they stay in the cache. seconds: None if no rate was measured.
    """

    num_files: int
    num_fetches: int
    num_bytes: int
    most_files: int
    disk_bytes: int
    seconds: float | None = None

    @classmethod
    def of(cls, model: RemoteModel, uses: ShardUses) -> Download:
        """If nothing but what is in the cache is there yet."""
        uses = without_files(uses, cached_files(model))
        sizes = {file.path: file.num_bytes for file in model.files}
        fetches = uses.fetches(())
        largest = sorted((sizes[name] for name in uses.needed(0)), reverse=True)[: uses.most]
        return cls(
            num_files=len(set(fetches)),
            num_fetches=len(fetches),
            num_bytes=sum(sizes[name] for name in fetches),
            most_files=len(largest),
            disk_bytes=0 if uses.keeps else sum(largest),
        )


class ShardStore:
    """The files of `model` that stages read, in `folder` or in the hub's cache, until `close`."""

    def __init__(
        self,
        model: RemoteModel,
        uses: ShardUses,
        folder: Path,
        on_download: Callable[[int, int], None] = tell_nobody,
        check_stop: Callable[[], None] = tell_nobody,
    ) -> None:
        """Begin to fetch. Deletes what no stage needs from `folder`, which may hold files of an earlier run.

        on_download: gets the bytes that this run has fetched, and those it will have; called by another
        thread. check_stop: called while a file is waited for; may raise. Files in the cache stay there.
        """
        self._model, self._folder, self._on_download = model, folder, on_download
        self._check_stop = check_stop
        self._files = {file.path: file for file in model.files}
        self._cached = cached_files(model)
        self._uses = without_files(uses, self._cached)
        folder.mkdir(exist_ok=True)
        needed = () if self._uses.keeps else self._uses.needed(0)
        self._present = {path.name for path in folder.iterdir() if path.name in needed}
        fetches = self._uses.fetches(self._present)
        begun = [self._partial(name) for name in fetches[:1]]
        for path in folder.iterdir():
            if path.name not in self._present and path not in begun:
                path.unlink()
        arrived = sum(path.stat().st_size for path in folder.iterdir() if path in begun)
        self._to_fetch = sum(self._files[name].num_bytes for name in fetches) - arrived
        self._fetched, self._stage = 0, 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._error: ErnieLocalError | None = None
        self._thread = threading.Thread(target=self._fetch_all, daemon=True)
        self._thread.start()

    def open(self, path: Path) -> int:
        """A descriptor of the file with this name, after it has arrived.

        ModelUnusable if it cannot be fetched or its hash is wrong, DoesNotFit if the disk of the cache is
        full; what `check_stop` raises.
        """
        if path.name in self._cached:
            return open_descriptor(self._cached[path.name])
        with self._changed:
            assert path.name in self._uses.stages[self._stage], (path.name, self._stage)
            # An error was met ahead of time, and the network may be back.
            self._error = None
            self._changed.notify_all()
            while path.name not in self._present:
                if self._error is not None:
                    raise self._error
                assert self._thread.is_alive(), path.name
                self._changed.wait(_SECONDS_BETWEEN_CHECKS)
                self._check_stop()
        return open_descriptor(self._place(path.name))

    def finish_stage(self) -> None:
        """Go on to the next stage, and delete what was needed for the last time. No file may be open."""
        with self._changed:
            self._stage += 1
            for name in self._present - self._uses.needed(self._stage).keys():
                self._delete(name)
            self._changed.notify_all()

    def close(self) -> None:
        """Stop fetching. What has arrived of a file is kept, and fetched on by the next run."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_SECONDS_TO_STOP)

    def _fetch_all(self) -> None:
        while True:
            with self._changed:
                while self._error is not None or (step := self._next_step()) is None:
                    if self._stop.is_set():
                        return
                    self._changed.wait()
            try:
                self._fetch(self._files[step])
            except FetchStopped:
                return
            except ErnieLocalError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
            else:
                with self._changed:
                    self._present.add(step)
                    self._changed.notify_all()

    def _next_step(self) -> str | None:
        """The next file to fetch, after room was made for it; None while there is none."""
        step = None if self._stop.is_set() else self._uses.next_fetch(self._stage, self._present)
        if step is None:
            return None
        wanted, dropped = step
        if dropped is not None:
            self._delete(dropped)
        return wanted

    def _fetch(self, file: RemoteFile) -> None:
        model = self._model
        with told_failures(f"{model.repo}@{model.commit[:12]}", model.repo, model.commit):
            if self._uses.keeps:
                last: int | None = None

                def on_progress(_name: str, done: int, _total: int) -> None:
                    nonlocal last
                    self._count(0 if last is None else done - last)
                    last = done

                files = (self._files["config.json"], file)  # which is looked at before any weights
                download(replace(model, files=files), model.commit, on_progress)
                return
            partial = self._partial(file.path)
            fetch_file(model, file, partial, self._count, self._stop)
            partial.replace(self._folder / file.path)
            sync_names(self._folder)

    def _count(self, num_bytes: int) -> None:
        self._fetched += num_bytes
        self._on_download(self._fetched, self._to_fetch)

    def _place(self, name: str) -> Path:
        if self._uses.keeps:
            return HubCache(self._model.repo).pointer(self._model.commit, self._files[name])
        return self._folder / name

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}{_PARTIAL}"

    def _delete(self, name: str) -> None:
        self._present.discard(name)
        if not self._uses.keeps:
            self._place(name).unlink()


def cached_files(model: RemoteModel) -> dict[str, Path]:
    """The files of `model` that are in the hub's cache, by name."""
    cache = HubCache(model.repo)
    return {
        file.path: cache.pointer(model.commit, file) for file in model.files if cache.has(model.commit, file)
    }


def without_files(uses: ShardUses, names: dict[str, Path]) -> ShardUses:
    """The uses of the other files."""
    return replace(uses, stages=[[name for name in stage if name not in names] for stage in uses.stages])
