"""Reads and writes checkpoints.

`hub` finds the directory, `files` its files, `header` reads one file's header; `names` maps tensor names,
`shapes` lists the tensors of a model, `index` accounts for every one, `reader` streams their values.
`packed` names the tensors of our own format, `format_tables` chooses formats, `writer` writes files;
`parts` sums up what a model is made of. Only `reader` and `writer` need torch, so it is imported on demand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ernie_local.checkpoint import reader

    return getattr(reader, name)
