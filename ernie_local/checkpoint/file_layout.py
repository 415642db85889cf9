"""What lies where in the files of a checkpoint in our own format: shards, their order and headers. No torch.

Pages come first in a shard, behind a header padded to their alignment: each lies at a multiple of 4096, and
any safetensors reader can still read the file. Knows nothing of values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from ernie_local.checkpoint.header import ITEM_BYTES
from ernie_local.packing.page_layout import PAGE_ALIGNMENT
from ernie_local.sizes import GIB

LARGEST_SHARD = 4 * GIB


class FileTensor(Protocol):
    """One tensor of a file. code: its type, as in ITEM_BYTES."""

    @property
    def name(self) -> str:
        """In the file."""
        ...

    @property
    def code(self) -> str:
        """Its type, as in ITEM_BYTES."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """In the file."""
        ...

    @property
    def num_bytes(self) -> int:
        """In the file."""
        ...


Tensor = TypeVar("Tensor", bound=FileTensor)


def cut_into_shards(tensors: Iterable[Tensor], largest: int = LARGEST_SHARD) -> list[list[Tensor]]:
    """The tensors of each file in their order; one larger than `largest` bytes gets a file of its own."""
    # By the alignment that their sizes keep: pages, packed matrices (64 bytes), wide numbers, narrow ones.
    order = sorted(tensors, key=lambda tensor: -_kept_alignment(tensor))
    shards: list[list[Tensor]] = [[]]
    room = largest
    for tensor in order:
        if tensor.num_bytes > room and shards[-1]:
            shards.append([])
            room = largest
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def file_header(tensors: Sequence[FileTensor]) -> bytes:
    """Length and JSON of a file's header, filled up so that the first tensor is aligned."""
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
    """Bytes of all files that hold these tensors, exactly; the index of several is not counted."""
    shards = cut_into_shards(tensors)
    return sum(len(file_header(shard)) + sum(tensor.num_bytes for tensor in shard) for shard in shards)


def _kept_alignment(tensor: FileTensor) -> int:
    if tensor.code == "U8":
        return PAGE_ALIGNMENT if tensor.num_bytes % PAGE_ALIGNMENT == 0 else 64
    return ITEM_BYTES[tensor.code]
