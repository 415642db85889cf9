"""The command `ernie-local cache`: shows what a cache folder of `chat --cache` holds, and clears it."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_cli.console import Console
from ernie_cli.options import CommonOptions, complete_path, path_argument
from ernie_local.errors import UsageError
from ernie_local.sizes import format_bytes

CLEAR = "clear"


def _complete_word(incomplete: str) -> list[str]:
    return [*([CLEAR] if CLEAR.startswith(incomplete) else []), *complete_path(incomplete)]


@dataclass(frozen=True, kw_only=True)
class CacheOptions(CommonOptions):
    """What was said on the command line."""

    words: tuple[str, ...] = path_argument(
        metavar="[clear] DIR",
        help="The folder of `chat --cache`; with `clear` before it, its entries are removed.",
        autocompletion=_complete_word,
    )


@dataclass
class CacheResult:
    """One object. After `cache clear`, `entries` and `bytes` are 0."""

    folder: str | None = None
    entries: int | None = None  #: Files with results; other files in the folder do not count.
    bytes: int | None = None  #: Of these files.
    removed: int | None = None  #: Entries that `cache clear` removed; null without it.
    freed: int | None = None  #: Bytes that this freed; null without it.


def cache(options: CacheOptions, result: CacheResult) -> None:
    """Show what a folder of `chat --cache` holds, or remove it with `cache clear DIR`.

    The entries are derived from images and conversations, and tell of them. Other files in the folder are
    left alone. An entry that nobody used for 30 days goes by itself.
    """
    is_clearing, folders = options.words[0] == CLEAR, options.words
    if is_clearing and len(folders) > 1:
        folders = folders[1:]
    if len(folders) != 1 or folders == (CLEAR,):
        raise UsageError(
            f"`cache` with {len(folders) if folders != (CLEAR,) else 0} folders",
            "it takes one folder, after `clear` to remove what is in it",
            "ernie-local cache DIR, or ernie-local cache clear DIR",
        )
    from ernie_local.reuse.cache_folder import CacheFolder

    console = Console(quiet=options.as_json)
    folder = CacheFolder.existing(folders[0])
    result.folder = str(folder.path)
    if is_clearing:
        removed = folder.clear()
        result.removed, result.freed = removed.num_entries, removed.num_bytes
    content = folder.content()
    result.entries, result.bytes = content.num_entries, content.num_bytes
    lines = [f"{folder.path}: {content.num_entries} entries, {format_bytes(content.num_bytes)}"]
    if is_clearing:
        lines = [f"removed {result.removed} entries, {format_bytes(result.freed or 0)}, from {folder.path}"]
    console.show(lines)
