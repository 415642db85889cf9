"""Files that are replaced: the content is on the disk before the name, and the name before anyone goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_local.files import replaced, written_whole


def replace(path: Path) -> None:
    with replaced(path) as new:
        new.write_bytes(b"new")


def write_whole(path: Path) -> None:
    with written_whole(path, "it") as file:
        file.write(b"new")


@pytest.mark.parametrize("write", [replace, write_whole])
def test_a_power_loss_leaves_the_old_content_or_the_new(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    synced: list[tuple[bool, bytes, bytes]] = []

    def sync(descriptor: int) -> None:
        flushed = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_folder = flushed == tmp_path
        synced.append((is_folder, b"" if is_folder else flushed.read_bytes(), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", sync)
    write(path)
    assert synced == [(False, b"new", b"old"), (True, b"", b"new")]


@pytest.mark.parametrize("write", [replace, write_whole])
def test_what_cannot_reach_the_disk_replaces_nothing(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Exception, match="Input/output error"):
        write(path)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]
