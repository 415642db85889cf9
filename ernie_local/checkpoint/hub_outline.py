"""Fetches of a hub model what it takes to know its parts: the small files, and headers of its weights."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ernie_local.checkpoint.header import LARGEST_HEADER
from ernie_local.checkpoint.hub_download import HubCache, download, weight_files
from ernie_local.checkpoint.hub_fetch import (
    WAITS,
    RemoteFile,
    RemoteModel,
    http_error,
    open_range,
    seconds_to_wait,
)

_FIRST_BYTES = 1 << 18  # hold the header of most files; a shard of the 28B model has one of 130 KB
_NUM_AT_A_TIME = 4


def outline(model: RemoteModel, revision: str, folder: Path) -> Path:
    """A directory that has the small files of `model`, and its weights with holes in place of the numbers.

    Its own directory where all weights are in the cache; else `folder`, in which each file of weights is as
    long as it is, takes only its header on the disk, and reads as zeros behind. Errors as of `download`.
    """
    cache = HubCache(model.repo)
    snapshot = download(model, revision, with_weights=False)
    weights = weight_files(model.files)
    if all(cache.has(model.commit, file) for file in weights):
        return snapshot
    for path in snapshot.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (folder / path.name).symlink_to(path.resolve())
    with ThreadPoolExecutor(_NUM_AT_A_TIME) as pool:
        list(pool.map(lambda file: _write_outline(model, file, folder), weights))
    return folder


def _write_outline(model: RemoteModel, file: RemoteFile, folder: Path) -> None:
    start = _read_range(model, file, min(_FIRST_BYTES, file.num_bytes))
    # A length that cannot be is left to the reader of headers, who refuses it.
    end = min(8 + int.from_bytes(start[:8], "little"), 8 + LARGEST_HEADER, file.num_bytes)
    if end > len(start):
        start = _read_range(model, file, end)
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        out.write(start[:end])
        out.truncate(file.num_bytes)


def _read_range(model: RemoteModel, file: RemoteFile, num_bytes: int) -> bytes:
    """The first bytes of a file."""
    for wait in (*WAITS[:3], None):
        content = bytearray()
        try:
            with open_range(model, file, 0, num_bytes) as response:
                for block in response.iter_bytes():
                    content += block
                    if len(content) >= num_bytes:
                        return bytes(content[:num_bytes])
            raise ConnectionError(f"{len(content)} of the first {num_bytes} bytes of {file.path} arrived")
        except (http_error(), ConnectionError) as error:
            asked = seconds_to_wait(error)
            if wait is None or asked is None:
                raise
            time.sleep(max(wait, asked))
    raise AssertionError("the last attempt returns or raises")
