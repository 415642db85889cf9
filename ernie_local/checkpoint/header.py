"""Reads the headers of safetensors files, and lays out our own files. No torch here.

The format: 8 bytes of length, a JSON object of tensors, then their bytes without holes. A header may have
been made to harm: each size in it is compared with the size of the file before it is used. In our own files
pages come first, behind a header padded to their alignment, so each page begins at a multiple of 4096.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard, TypeVar

from ernie_local.errors import ModelUnusable
from ernie_local.files import open_plain
from ernie_local.packing.layout import PAGE_ALIGNMENT
from ernie_local.sizes import GIB, MIB, format_bytes
from ernie_local.strict_json import git_lfs_pointer, parse_json_object, show

# A header takes about 130 bytes a tensor: 1.5 MiB for the 11,106 tensors of the 28B model in one file.
LARGEST_HEADER = 16 * MIB
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
LARGEST_SHARD = 4 * GIB


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: its name there, its type, and where in the file its bytes lie."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # of the first byte, from the start of the file
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.path}: tensor {show(self.name)}"


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """All tensors of the safetensors file `path` by name; ModelUnusable if it breaks any rule of the format.

    Tensors must follow each other without gap or overlap and end where the file ends.
    """
    try:
        with open_plain(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            start = file.read(64)
            length = _checked_length(path, start, file_bytes)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise ModelUnusable(
            f"{path} cannot be read",
            error.strerror or str(error),
            "check the path and its permissions, or download the model again",
        ) from error
    if len(raw) != length:
        problem = f"has {len(raw)} bytes of a header of {length}"
        raise _broken(path, problem, "the file became shorter meanwhile")
    entries = parse_json_object(raw, f"the header of {path}")
    data_start = 8 + length
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    ):
        problem = "has __metadata__ that is not an object of texts"
        raise _broken(path, problem, "it was damaged or made wrongly")
    tensors = [_parse_entry(path, name, entry, data_start) for name, entry in entries.items()]
    _check_coverage(path, tensors, data_start, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _checked_length(path: Path, start: bytes, file_bytes: int) -> int:
    if start.startswith(b"version https://git-lfs"):
        raise git_lfs_pointer(str(path))
    if len(start) < 8:
        raise _broken(path, f"has {file_bytes} bytes, a safetensors file has at least 8", "it was cut off")
    length = int.from_bytes(start[:8], "little")
    if length > file_bytes - 8:
        problem = f"claims a header of {length} bytes, but has {file_bytes} bytes in all"
        raise _broken(path, problem, "it was cut off, or is not a safetensors file")
    if length > LARGEST_HEADER:
        problem = f"claims a header of {format_bytes(length)}, the limit is {format_bytes(LARGEST_HEADER)}"
        raise _broken(path, problem, "no model has that many tensors")
    return length


def _parse_entry(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad_entry(path, name, "has not exactly the entries dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _bad_entry(path, name, f"has the dtype {show(dtype)}, known are {', '.join(ITEM_BYTES)}")
    if not _are_sizes(shape) or len(shape) > 8:
        raise _bad_entry(path, name, "has a shape that is not a list of up to 8 sizes from 0 up")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _bad_entry(path, name, "has data_offsets that are not two numbers from 0 up")
    begin, end = offsets
    # Integers of Python do not overflow: the product of absurd sizes is just a large number.
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != num_bytes:
        sizes = ", ".join(show(size) for size in shape)
        by_shape = f"{show(num_bytes)} by its shape ({sizes}) and dtype {dtype}"
        raise _bad_entry(path, name, f"takes {show(end - begin)} bytes by its offsets, but {by_shape}")
    return StoredTensor(path, name, dtype, tuple(shape), data_start + begin, num_bytes)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_coverage(path: Path, tensors: list[StoredTensor], data_start: int, file_bytes: int) -> None:
    for tensor in tensors:
        if tensor.offset + tensor.num_bytes > file_bytes:
            end = show(tensor.offset + tensor.num_bytes)
            problem = f"has {file_bytes} bytes, but tensor {show(tensor.name)} would end at byte {end}"
            why = "the file was cut off while downloading or copying, or its header was damaged"
            raise _broken(path, problem, why)
    position, previous = data_start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset != position:
            relation = "overlaps" if tensor.offset < position else "leaves a gap after"
            where = f"begins at byte {show(tensor.offset)} of the file"
            problem = f"{where} and {relation} {previous}, which ends at byte {show(position)}"
            raise _bad_entry(path, tensor.name, problem)
        position, previous = tensor.offset + tensor.num_bytes, show(tensor.name)
    if position != file_bytes:
        problem = f"has {file_bytes} bytes, but its tensors end at byte {show(position)} with {previous}"
        raise _broken(path, problem, "bytes that belong to no tensor follow")


def _bad_entry(path: Path, name: str, problem: str) -> ModelUnusable:
    return _broken(path, f"tensor {show(name)} {problem}", "the header was damaged or made wrongly")


def _broken(path: Path, problem: str, reason: str) -> ModelUnusable:
    hint = "download this file again, and compare its size with the one published"
    return ModelUnusable(f"{path}: {problem}", reason, hint)


class FileTensor(Protocol):
    """One tensor that is to be laid out in a file."""

    @property
    def name(self) -> str:
        """Name in the file."""

    @property
    def code(self) -> str:
        """Type, as in ITEM_BYTES."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""

    @property
    def num_bytes(self) -> int:
        """Size in the file."""


Tensor = TypeVar("Tensor", bound=FileTensor)


def cut_into_shards(tensors: Iterable[Tensor], largest: int = LARGEST_SHARD) -> list[list[Tensor]]:
    """The tensors of each file in their order; one larger than `largest` bytes gets a file of its own."""
    shards: list[list[Tensor]] = [[]]
    room = largest
    # Pages, then packed matrices (64 bytes), wide numbers and narrow ones: each keeps what follows it
    # aligned.
    for tensor in sorted(tensors, key=lambda tensor: -_kept_alignment(tensor)):
        if tensor.num_bytes > room and shards[-1]:
            shards.append([])
            room = largest
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def file_header(tensors: Sequence[FileTensor]) -> bytes:
    """Length and JSON of a file's header, padded so that the first tensor is aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.code,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // PAGE_ALIGNMENT) * PAGE_ALIGNMENT - 8)
    return len(text).to_bytes(8, "little") + text


def files_bytes(tensors: Iterable[FileTensor]) -> int:
    """Exact bytes of all files that hold these tensors, without the index of several files."""
    shards = cut_into_shards(tensors)
    return sum(len(file_header(shard)) + sum(tensor.num_bytes for tensor in shard) for shard in shards)


def _kept_alignment(tensor: FileTensor) -> int:
    if tensor.code == "U8":
        return PAGE_ALIGNMENT if tensor.num_bytes % PAGE_ALIGNMENT == 0 else 64
    return ITEM_BYTES[tensor.code]
