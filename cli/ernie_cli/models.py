"""The command `ernie-local models`: lists what is published and what is on this machine; removes models."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from ernie_cli.console import Console
from ernie_cli.json_object import fill_result
from ernie_cli.options import CommonOptions, complete_path, option, path_argument
from ernie_cli.settings import table_columns
from ernie_local.errors import UsageError
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_local.checkpoint.stored import Removal

REMOVE = "remove"
_PUBLISHED_ROW = "  {:<44}{:<10}{:>8}{:>12}"
_STORED_ROW = "  {:<44}{:>10}{:>12}  {}"


def _complete_word(incomplete: str) -> list[str]:
    return [*([REMOVE] if REMOVE.startswith(incomplete) else []), *complete_path(incomplete)]


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(CommonOptions):
    """What was said on the command line."""

    words: tuple[str, ...] = path_argument(
        default=(),
        metavar="[DIR]...",
        help="Folders to look for models in, by default the current one; or `remove NAME`, where NAME is "
        "hf:org/name[@revision] in the cache of the hub, or a directory.",
        autocompletion=_complete_word,
    )
    yes: bool = option("--yes", "-y", default=False, help="Remove without asking.")


@dataclass
class PublishedObject:
    """A repository on the hub. `refusal` says why this program does not run it, null where it does."""

    name: str
    variant: str  #: `PT` answers, `Thinking` thinks first, `Base` was not trained to answer.
    parameters: int
    bytes: Annotated[int, "num_bytes"]  #: Of all weight files.
    license: str
    refusal: str | None


@dataclass
class StoredObject:
    """A model on this machine."""

    name: str  #: As other commands take it.
    directory: str
    bytes: Annotated[int, "num_bytes"]  #: Of all its files, and of what has arrived of a download.
    bits_per_weight: float | None  #: Null where it is not whole.
    fault: str | None  #: Why it is not whole by config.json, index and headers; null where it is.
    refs: list[str]  #: Branches and tags that name this revision, in the cache of the hub.


@dataclass
class ModelsResult:
    """One object. `models remove` fills `removed` and `freed` alone."""

    published: list[PublishedObject] = field(default_factory=list)
    """ERNIE-4.5-VL models on the Hugging Face hub, as far as this version knows."""
    cache: str | None = None  #: Folder of the hub's cache.
    cached: list[StoredObject] = field(default_factory=list)  #: Models in that cache.
    on_disk: list[StoredObject] = field(default_factory=list)  #: nano, and models in the given folders.
    notes: list[str] = field(default_factory=list)  #: Repositories in the cache that cannot be read.
    removed: list[str] = field(default_factory=list)  #: Directories that were removed.
    freed: int | None = None  #: Bytes that this freed.


def models(options: ModelsOptions, result: ModelsResult) -> None:
    """List published models, those in the hub's cache, and those on disk; or remove one.

    `models remove NAME` asks before it removes, and removes nothing but a model.
    """
    console = Console(quiet=options.as_json)
    if options.words[:1] == (REMOVE,):
        _remove(options, console, result)
        return
    if options.yes:
        raise UsageError(
            "--yes without `remove`", "it answers the question of `models remove NAME`", "remove --yes"
        )
    with console.working("reading headers"):
        _fill(options.words, result)
    for note in result.notes:
        console.note(note)
    console.show(_lines(result))


def _fill(folders: Sequence[str], result: ModelsResult) -> None:
    from ernie_local.checkpoint.hub import NANO_DIRECTORY
    from ernie_local.checkpoint.published import published_models
    from ernie_local.checkpoint.stored import cached_models, describe_model, models_on_disk

    result.published = [fill_result(PublishedObject, model) for model in published_models()]
    cached = cached_models()
    found = [describe_model("nano", NANO_DIRECTORY)] if NANO_DIRECTORY.is_dir() else []
    for folder in folders or (".",):
        found += models_on_disk(Path(folder).expanduser())
    result.cache, result.notes = str(cached.folder), cached.notes
    result.cached, result.on_disk = (
        [fill_result(StoredObject, model, directory=str(model.directory)) for model in models]
        for models in (cached.models, found)
    )


def _remove(options: ModelsOptions, console: Console, result: ModelsResult) -> None:
    from ernie_local.checkpoint.stored import plan_removal

    if len(options.words) != 2:
        raise UsageError(
            f"`models remove` with {len(options.words) - 1} names",
            "one model is removed at a time",
            "ernie-local models remove NAME",
        )
    removal = plan_removal(options.words[1])
    if not options.yes and not _is_confirmed(removal, console):
        console.say("nothing was removed")
        return
    removal.execute()
    result.removed = [str(model.directory) for model in removal.models]
    result.freed = removal.num_bytes
    console.show([f"removed {removal}"])


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody can answer there."""
    return stream is not None and stream.isatty()


def _is_confirmed(removal: Removal, console: Console) -> bool:
    if not is_terminal(sys.stdin):
        raise UsageError(
            f"`models remove` would remove {removal}",
            "it asks first, and there is no terminal for an answer",
            "add --yes",
        )
    console.say(f"remove {removal}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _lines(result: ModelsResult) -> Iterator[str]:
    width = table_columns()
    running = [model for model in result.published if model.refusal is None]
    yield _PUBLISHED_ROW.format("published", "variant", "params", "size")[2:]
    for model in running:
        yield _PUBLISHED_ROW.format(
            f"hf:{model.name}", model.variant, f"{model.parameters / 1e9:.1f} B", format_bytes(model.bytes)
        )
    yield f"  license: {', '.join(sorted({model.license for model in running}))}"
    yield ""
    yield "published, but not run by this program"
    for refusal in dict.fromkeys(model.refusal for model in result.published if model.refusal is not None):
        yield from _wrapped(f"{refusal}:", width)
        yield from (f"    hf:{model.name}" for model in result.published if model.refusal == refusal)
    yield ""
    yield from _stored_lines(f"in the cache of the hub, {result.cache}", result.cached, width)
    yield ""
    yield from _stored_lines("on disk", result.on_disk, width)


def _stored_lines(title: str, stored: Iterable[StoredObject], width: int) -> Iterator[str]:
    rows = list(stored)
    if not rows:
        yield f"{title}: none"
        return
    yield title
    yield _STORED_ROW.format("", "bits", "size", "").rstrip()
    for model in rows:
        bits = "" if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}"
        name = model.name
        if len(name) > 44:  # a line of its own
            yield f"  {name}"
            name = ""
        state = "whole" if model.fault is None else "not whole"
        yield _STORED_ROW.format(name, bits, format_bytes(model.bytes), state)
        if model.fault is not None:
            yield from _wrapped(model.fault, width, "    ")


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )
