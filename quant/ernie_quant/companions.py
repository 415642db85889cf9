"""Copies the small files of a model beside its new weights: those of a known list, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ernie_local.checkpoint.files import HASHES_FILE, INDEX_FILE
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.errors import ModelUnusable
from ernie_local.file_names import GOLDEN_FILE, GOLDEN_IMAGE
from ernie_local.files import replaced
from ernie_local.model_files import INPUT_FILES
from ernie_local.strict_json import show

# Without effect on answers: what other programs read, the terms of use, and what `verify --golden` reads.
_FOR_OTHERS = ("tokenizer.json", "video_preprocessor_config.json")
_TERMS = tuple(f"{name}{suffix}" for name in ("LICENSE", "NOTICE") for suffix in ("", ".txt", ".md"))
_COPIED = frozenset((*INPUT_FILES, *_FOR_OTHERS, *_TERMS, GOLDEN_FILE, GOLDEN_IMAGE))
# Made anew for the checkpoint: README.md by the report, the others with the weights.
_REPLACED = frozenset(("config.json", "README.md", INDEX_FILE, HASHES_FILE))
_MOST_BYTES = 256 << 20  # the largest tokenizer.json has some 20 MB
_MOST_NAMES = 8
_HINT = "check the path and its permissions, or download the file again"


def copy_companions(source: Path, checkpoint: Checkpoint, out: Path, on_note: Callable[[str], None]) -> None:
    """Copy the files of the list from `source`, and note the names of all that stays.

    checkpoint: that of `source`. ModelUnusable for a file of the list that cannot be read or is too large.
    """
    accounts = checkpoint.accounts
    weights = {part.path.name for source in accounts.sources.values() for part in source.stored_parts}
    if accounts.tied_head is not None:
        weights.add(accounts.tied_head.path.name)
    left: list[str] = []
    copied = _companions(source)
    for path in sorted(source.iterdir()):
        if path in copied:
            _copy(path, out / path.name)
        elif path.name not in _REPLACED and path.name not in weights:
            left.append(path.name)
    if left:
        more = f" and {len(left) - _MOST_NAMES} more" if len(left) > _MOST_NAMES else ""
        on_note(f"left in {source}, not copied: {', '.join(map(show, left[:_MOST_NAMES]))}{more}")


def companion_bytes(source: Path) -> int:
    """Bytes of all that a checkpoint has from `source` unchanged. Errors as from `copy_companions`."""
    card = source / "README.md"  # which the report copies
    return sum(map(_checked_bytes, _companions(source))) + (card.stat().st_size if card.is_file() else 0)


def _companions(source: Path) -> list[Path]:
    return [path for path in source.iterdir() if path.name in _COPIED and not path.is_dir()]


def _checked_bytes(path: Path) -> int:
    """The size of a file that can be copied. A link is followed: the hub's cache consists of them."""
    if not path.is_file():
        raise ModelUnusable(
            f"{path} cannot be copied", "it is a link that leads nowhere, or no plain file", _HINT
        )
    num_bytes = path.stat().st_size
    if num_bytes > _MOST_BYTES:
        raise ModelUnusable(
            f"{path} has {num_bytes} bytes, over the limit of {_MOST_BYTES}",
            "a file of this name holds settings, a vocabulary or terms of use",
            "move it away, or download the model again",
        )
    return num_bytes


def _copy(path: Path, to: Path) -> None:
    _checked_bytes(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelUnusable(f"{path} cannot be copied", error.strerror or str(error), _HINT) from error
    with replaced(to) as new:
        new.write_bytes(content)
