"""The last look at a new checkpoint before it gets its name: whole, as large as planned, and it answers.

Owns what is asked of every checkpoint that is written, and its hashes.json: what was looked at is what the
hashes stand for. Knows nothing of how it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ernie_local.checkpoint.hashes import HASHES_FILE, write_hashes
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_local.verify import verify
from ernie_local.verify.companions import check_companions
from ernie_local.verify.finding import Findings

_SIZE_SHARE = 0.01  # by which weights may be larger or smaller than planned
OnNote = Callable[[str], None]


def audit(directory: Path, source: Path, planned_bytes: int, on_note: OnNote | None = None) -> None:
    """Look at the new checkpoint in `directory` and write its hashes.json; what was not looked at is a note.

    ModelUnusable naming the first fault: a tensor missing or twice, a number that is not finite, a damaged
    page, weights that differ by more than 1 % from `planned_bytes`, a file beside them that cannot be read
    though that of `source` can, scores of the next token that are not finite.
    """
    note = on_note or _say_nothing
    # Left there by a run that was killed behind this point.
    (directory / HASHES_FILE).unlink(missing_ok=True)
    found_in_source = Findings()
    check_companions(source, read_config(source), found_in_source)
    for finding in found_in_source.all:
        note(f"not audited, the source has it too: {finding.error.what}")
    result = verify(directory, companions=not found_in_source.all)
    if result.findings:
        raise result.findings[0].error
    _check_size(
        directory,
        sum(file.num_bytes for name, file in result.hashes.items() if name.endswith(".safetensors")),
        planned_bytes,
    )
    write_hashes(directory, result.hashes)


def _check_size(directory: Path, found_bytes: int, planned_bytes: int) -> None:
    if abs(found_bytes - planned_bytes) > _SIZE_SHARE * planned_bytes:
        raise ModelUnusable(
            f"{directory} has {found_bytes} bytes of weights, {planned_bytes} were planned",
            f"they differ by more than {_SIZE_SHARE:.0%}",
            "report this as a defect; --resume never makes the checkpoint anew",
        )


def _say_nothing(_note: str) -> None:
    pass
