"""Files are given once they are whole, and once."""

from __future__ import annotations

import os
from pathlib import Path

from ernie_local.extraction.documents import FoundFiles, find_files
from ernie_local.extraction.watch import watched_files


def watch(folder: Path, *changes: tuple[str, bytes]) -> list[tuple[str, int]]:
    """The files given, with the look in which they were; before each look, one file has this content."""
    left, given, looks = list(changes), list[tuple[str, int]](), [0]

    def find() -> FoundFiles:
        if left:
            name, content = left.pop(0)
            if name:
                (folder / name).write_bytes(content)
                os.utime(folder / name, ns=(looks[0], looks[0]))
        looks[0] += 1
        return find_files([folder], "*")

    for file in watched_files(find, lambda: looks[0] > len(changes), poll_seconds=0.0):
        given.append((file.name, looks[0]))
    return given


def test_a_file_that_grows_is_waited_for(tmp_path: Path) -> None:
    nothing = ("", b"")
    given = watch(tmp_path, ("a", b"1"), ("a", b"12"), ("a", b"123"), nothing, ("b", b"1"), nothing, nothing)
    assert given == [("a", 4), ("b", 6)]


def test_a_file_that_is_written_anew_at_the_same_length_is_waited_for(tmp_path: Path) -> None:
    assert watch(tmp_path, ("a", b"1"), ("a", b"2"), ("", b"")) == [("a", 3)]


def test_a_file_that_goes_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert watch(tmp_path, ("", b""), ("", b"")) == []
