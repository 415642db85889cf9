"""Reads and writes one entry of a cache folder: a header, the content, and a checksum over both.

The header is fixed by the name and the size, so a reader compares it and parses nothing (docs/format.md).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable

import xxhash

_HEADER_BYTES, _CHECKSUM_BYTES = 256, 16


def entry_bytes(num_bytes: int) -> int:
    """Of the file of an entry with so many bytes of content."""
    return _HEADER_BYTES + num_bytes + _CHECKSUM_BYTES


def read_entry(file: io.FileIO, name: str, num_bytes: int, buffers: Iterable[memoryview]) -> str | None:
    """Fill the buffers; what is wrong with the entry, None where nothing is."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return "is not a plain file"
    expected = entry_bytes(num_bytes)
    if status.st_size != expected:
        return f"has {status.st_size} bytes, expected {expected}"
    header = bytearray(_HEADER_BYTES)
    if not _fill(file, memoryview(header)) or header != _header(name, num_bytes):
        return "begins with the header of something else"
    state = xxhash.xxh3_128(header)
    for buffer in buffers:
        if not _fill(file, buffer):
            return "ended early"
        state.update(buffer)
    if file.read(_CHECKSUM_BYTES) != state.digest():
        return "has another content than its checksum says"
    return None


def write_entry(file: io.FileIO, name: str, num_bytes: int, pieces: Iterable[memoryview]) -> None:
    """Write `pieces`, of `num_bytes` together."""
    header = _header(name, num_bytes)
    state, num_left = xxhash.xxh3_128(header), num_bytes
    _write_all(file, memoryview(header))
    for piece in pieces:
        state.update(piece)
        num_left -= len(piece)
        _write_all(file, piece)
    assert num_left == 0, (name, num_bytes, num_left)
    _write_all(file, memoryview(state.digest()))


def _header(name: str, num_bytes: int) -> bytes:
    text = f"ernie-local cache entry, version 1\nname {name}\nbytes {num_bytes}\n"
    return text.encode().ljust(_HEADER_BYTES, b"\n")


def _fill(file: io.FileIO, buffer: memoryview) -> bool:
    """Whether the file had enough for the buffer."""
    num_read = 0
    while num_read < len(buffer):
        arrived = file.readinto(buffer[num_read:])
        if not arrived:
            return False
        num_read += arrived
    return True


def _write_all(file: io.FileIO, piece: memoryview) -> None:
    """The system may take less than it is given."""
    num_written = 0
    while num_written < len(piece):
        num_written += file.write(piece[num_written:]) or 0
