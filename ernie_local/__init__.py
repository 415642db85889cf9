"""The public names of the runtime: `load`, `Chat` and what it takes, `extract`, and the version.

Importing this package imports neither torch nor transformers: each public name is looked up when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_local.extraction.extract import extract
    from ernie_local.extraction.reader import ReadingOptions
    from ernie_local.loading import LoadedModel, load
    from ernie_local.session import Chat, ChatMessage, ChatTool, ImagePart, ImageView, VideoPart

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "ChatMessage",
    "ChatTool",
    "ImagePart",
    "ImageView",
    "LoadedModel",
    "ReadingOptions",
    "VideoPart",
    "__version__",
    "extract",
    "load",
]


def __getattr__(name: str) -> object:
    if name in ("load", "LoadedModel"):
        from ernie_local import loading

        return getattr(loading, name)
    if name in ("Chat", "ChatMessage", "ChatTool", "ImagePart", "ImageView", "VideoPart"):
        from ernie_local import session

        return getattr(session, name)
    if name == "extract":
        from ernie_local.extraction.extract import extract

        return extract
    if name == "ReadingOptions":
        from ernie_local.extraction.reader import ReadingOptions

        return ReadingOptions
    raise AttributeError(f"module 'ernie_local' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
