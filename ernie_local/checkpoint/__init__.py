"""Reading a checkpoint.

`names` maps tensor names, `shapes` says which tensors must be there, `header` distrusts one safetensors
file, `files` finds the files, `index` accounts for every tensor, `reader` streams their values, `hub` finds
the directory; `packed` names the tensors of our own format, `writer` writes it, `parts` tells what a model
is made of. Only `reader` and `writer` need torch, so it is imported when asked for.
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
