"""A cache folder against damage, full and foreign folders, kills, and other processes."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ernie_local.errors import UsageError
from ernie_local.reuse import cache_folder
from ernie_local.reuse.cache_folder import MARKER, CacheFolder
from ernie_local.reuse.entry import entry_bytes
from tests.special_files import SPECIAL_FILES, within_seconds

LIMIT = 1 << 20
ENTRY_BYTES = entry_bytes(1000)


def name_of(number: int) -> str:
    return f"features-{number:032x}"


def content_of(number: int) -> bytes:
    return bytes((number + place) % 251 for place in range(1000))


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    return CacheFolder.open(tmp_path / "kept", LIMIT)


def write(folder: CacheFolder, number: int) -> bool:
    content = memoryview(content_of(number))
    return folder.write(name_of(number), 1000, [content[:400], content[400:]])


def read(folder: CacheFolder, number: int) -> bytes | None:
    content = bytearray(1000)
    view = memoryview(content)
    is_there = folder.read(name_of(number), 1000, [view[:1], view[1:600], view[600:]])
    return bytes(content) if is_there else None


@contextmanager
def one_warning(words: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    (message,) = [str(one.message) for one in told]
    assert words in message
    assert "\n" not in message


def test_what_is_written_is_read(folder: CacheFolder) -> None:
    assert read(folder, 1) is None
    assert write(folder, 1)
    assert write(folder, 2)
    assert read(folder, 1) == content_of(1)
    assert read(CacheFolder.open(folder.path, LIMIT), 2) == content_of(2)
    assert (folder.content().num_entries, folder.content().num_bytes) == (2, 2 * ENTRY_BYTES)
    assert sorted(folder.names()) == [name_of(1), name_of(2)]


def test_nobody_else_may_read(folder: CacheFolder, tmp_path: Path) -> None:
    write(folder, 1)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for path in folder.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    folder.path.chmod(0o755)
    with one_warning("was open to other users"):
        CacheFolder.open(folder.path, LIMIT)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (tmp_path / "empty").mkdir(mode=0o755)
    CacheFolder.open(tmp_path / "empty", LIMIT)
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o700


def test_the_folder_of_another_user_is_refused(folder: CacheFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UsageError, match="this process runs as 4711"):
        CacheFolder.open(folder.path, LIMIT)


@pytest.mark.parametrize("kind", ["bits", "cut", "longer", "empty", "random", "renamed", "checksum"])
def test_a_damaged_entry_is_told_and_removed(folder: CacheFolder, kind: str) -> None:
    write(folder, 1)
    path = folder.path / name_of(1)
    content = bytearray(path.read_bytes())
    if kind == "bits":
        content[700] ^= 1
    elif kind == "checksum":
        content[-1] ^= 1
    elif kind == "cut":
        del content[-5:]
    elif kind == "longer":
        content += b"x"
    elif kind == "empty":
        content.clear()
    elif kind == "random":
        content = bytearray(os.urandom(len(content)))
    elif kind == "renamed":
        write(folder, 2)
        content = bytearray((folder.path / name_of(2)).read_bytes())
    path.write_bytes(content)
    with one_warning("it is computed again"):
        assert read(folder, 1) is None
    assert not path.exists()
    assert write(folder, 1)
    assert read(folder, 1) == content_of(1)


@pytest.mark.parametrize("kind", ["link", *SPECIAL_FILES])
def test_what_is_no_plain_file_is_left_alone(folder: CacheFolder, tmp_path: Path, kind: str) -> None:
    path = folder.path / name_of(1)
    if kind == "link":
        (tmp_path / "precious").write_bytes(b"x" * ENTRY_BYTES)
        path.symlink_to(tmp_path / "precious")
    else:
        SPECIAL_FILES[kind](path)
    before = path.lstat()
    with within_seconds(20):
        with one_warning("it is computed again"):
            assert read(folder, 1) is None
        with one_warning("is not a plain file"):
            assert not write(folder, 1)
        folder.purge(LIMIT)
        folder.clear()
    assert folder.content().num_entries == 0
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    if kind == "link":
        assert (tmp_path / "precious").read_bytes() == b"x" * ENTRY_BYTES


def test_other_files_are_never_removed(folder: CacheFolder) -> None:
    others = ["notes.txt", "features-1", f"features-{1:033x}", "model-xyz", ".hidden", "prefix-"]
    for name in others:
        (folder.path / name).write_text("mine")
        os.utime(folder.path / name, (0, 0))
    write(folder, 1)
    folder.purge(LIMIT)
    assert folder.names() == []
    write(folder, 1)
    assert folder.clear().num_entries == 1
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([*others, MARKER])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"a.txt": "x", "b.txt": "y"}, "it holds 2 files that are not of a cache, the first is a.txt"),
        ({MARKER: "Signature: 8a477f597d28d172789f06886806bc55\n# of another program\n"}, "it holds 1 files"),
        (
            {MARKER: "Signature: 8a477f597d28d172789f06886806bc55\n# ernie-local cache, version 2\n"},
            "another version of ernie-local",
        ),
    ],
)
def test_a_foreign_folder_is_refused_and_stays(tmp_path: Path, content: dict[str, str], why: str) -> None:
    tmp_path.chmod(0o755)
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError):
        CacheFolder.existing(tmp_path)
    with pytest.raises(UsageError, match=why) as caught:
        CacheFolder.open(tmp_path, LIMIT)
    assert len(str(caught.value).splitlines()) == 3
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["file", *(kind for kind in SPECIAL_FILES if kind != "directory")])
def test_what_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    SPECIAL_FILES[kind](path) if kind != "file" else path.write_text("x")
    with within_seconds(20):
        with pytest.raises(UsageError, match="cannot be the folder of cache"):
            CacheFolder.open(path, LIMIT)
        with pytest.raises(UsageError, match="cannot be the folder of cache"):
            CacheFolder.existing(path)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    folder = CacheFolder.open(tmp_path / "kept", 4 * ENTRY_BYTES)
    for number in range(4):
        write(folder, number)
        os.utime(folder.path / name_of(number), (1e9 + number, time.time() - 1000 + number))
    assert read(folder, 0) is not None  # which is now the last that was used
    write(folder, 4)
    assert sorted(folder.names()) == [name_of(number) for number in (0, 2, 3, 4)]
    folder.touch([name_of(2)])
    write(folder, 5)
    assert sorted(folder.names()) == [name_of(number) for number in (0, 2, 4, 5)]
    smaller = CacheFolder.open(folder.path, ENTRY_BYTES)
    assert smaller.content().num_bytes <= ENTRY_BYTES


def test_what_nobody_uses_goes_after_30_days(folder: CacheFolder) -> None:
    for number, days in enumerate((29, 31)):
        write(folder, number)
        os.utime(folder.path / name_of(number), (0, time.time() - days * 86400))
    (folder.path / ".new-killed").write_bytes(b"half")
    (folder.path / ".new-atwork").write_bytes(b"half")
    os.utime(folder.path / ".new-killed", (0, time.time() - 7200))
    again = CacheFolder.open(folder.path, LIMIT)
    assert again.names() == [name_of(0)]
    assert [path.name for path in folder.path.glob(".new-*")] == [".new-atwork"]


def test_an_entry_over_the_limit_is_not_stored(tmp_path: Path) -> None:
    folder = CacheFolder.open(tmp_path / "kept", ENTRY_BYTES)
    write(folder, 1)
    with one_warning("the limit of all is 1.2 KiB"):
        assert not folder.write(name_of(2), 1001, [memoryview(bytes(1001))])
    assert folder.names() == [name_of(1)]


def test_a_full_disk_is_told_once_and_loses_nothing(folder: CacheFolder) -> None:
    write(folder, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with one_warning("this process stores nothing more"):
            assert not write(folder, 2)
            assert not write(folder, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([MARKER, name_of(1)])
    assert read(folder, 1) == content_of(1)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_may_only_be_read_serves(
    folder: CacheFolder, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    write(folder, 1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    # Root may write anywhere, so that a mode does not show it.
    for module, call in ((tempfile, "mkstemp"), (os, "utime"), (Path, "unlink")):
        monkeypatch.setattr(module, call, refuse)
    opened = CacheFolder.open(folder.path, LIMIT)
    assert read(opened, 1) == content_of(1)
    with one_warning(os.strerror(error)):
        assert not write(opened, 2)
    with pytest.raises(UsageError, match="cannot be removed"):
        opened.clear()


def test_an_entry_that_is_removed_while_it_is_read(
    folder: CacheFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 1)
    readinto = io.FileIO.readinto
    names = folder.names()

    class Removing(io.FileIO):
        def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
            (folder.path / name_of(1)).unlink(missing_ok=True)
            return readinto(self, buffer)

    monkeypatch.setattr(
        cache_folder,
        "open",
        lambda path, _, buffering, opener: Removing(path, opener=opener),
        raising=False,
    )
    assert read(folder, 1) == content_of(1)  # an open file stays
    assert not folder.names()
    assert read(folder, 1) is None
    assert names == [name_of(1)]
    (folder.path / MARKER).unlink()
    folder.path.rmdir()
    assert folder.names() == []
    with one_warning("cannot be written"):
        write(folder, 1)


_WRITER = """
import sys
from pathlib import Path
from ernie_local.reuse.cache_folder import CacheFolder
folder = CacheFolder.open(sys.argv[1], 1 << 24)
first = int(sys.argv[2])
print("begins", flush=True)
for round in range(int(sys.argv[3])):
    for number in range(first, first + 8):
        content = bytes((number + place) % 251 for place in range(1000)) * 300
        folder.write(f"features-{number:032x}", 300_000, [memoryview(content)])
        found = bytearray(300_000)
        if folder.read(f"features-{number:032x}", 300_000, [memoryview(found)]):
            assert found == content
"""


def start_writer(path: Path, first: int, rounds: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", _WRITER, str(path), str(first), str(rounds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def whole_entries(folder: CacheFolder) -> int:
    """Entries, each of which is read whole."""
    names = folder.names()
    for name in names:
        assert folder.read(name, 300_000, [memoryview(bytearray(300_000))])
    return len(names)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kept"  # which both of them may make
    writers = [start_writer(path, first, 20) for first in (0, 4)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert whole_entries(CacheFolder.open(path, 1 << 24)) == 12
    assert not list(path.glob(".new-*"))


def test_another_process_may_be_faster_and_write_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It marks the folder and writes a result just after this one has looked for the marker."""
    path = tmp_path / "kept"
    looks = []

    def look(folder: Path) -> bool:
        looks.append(is_marked(folder))
        if len(looks) == 1:
            with monkeypatch.context() as other:
                other.setattr(cache_folder, "_is_marked", is_marked)
                CacheFolder.open(path, 1 << 24).write("features-" + 32 * "0", 3, [memoryview(b"abc")])
        return looks[-1]

    is_marked = cache_folder._is_marked
    monkeypatch.setattr(cache_folder, "_is_marked", look)
    assert CacheFolder.open(path, 1 << 24).names() == ["features-" + 32 * "0"]
    assert looks == [False, True]


def test_a_killed_process_leaves_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for trial in range(5):
        writer = start_writer(path, 0, 100_000)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begins\n"
        time.sleep(0.02 + 0.013 * trial)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        folder = CacheFolder.open(path, 1 << 24)
        assert whole_entries(folder) == len(folder.names())
    for left in path.glob(".new-*"):
        os.utime(left, (0, 0))
    CacheFolder.open(path, 1 << 24)
    assert not list(path.glob(".new-*"))
