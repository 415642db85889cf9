"""Orders the work in stages: what lies outside of the layers, then each layer with its experts.

Embedding, vision tower and head come first, as calibration begins with them. Every stage needs a few files of
the source, and none that only earlier stages needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ernie_local.checkpoint.index import Accounts
from ernie_local.checkpoint.names import NUMBER
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import TextConfig

_IN_LAYER = re.compile(rf"(?:layers|(?:small_)?experts)\.({NUMBER})\.")


@dataclass(frozen=True, slots=True)
class WorkStage:
    """layer_id: None for what lies outside of the layers; fixed: its tensors that need no calibration."""

    layer_id: int | None
    fixed: tuple[TensorEntry, ...]

    def reads_source(self, done: Collection[str], *, calibrates: bool) -> bool:
        """Whether weights of the source are still to be read for it. done: finished units."""
        units = [entry.name for entry in self.fixed]
        if calibrates and self.layer_id is not None:  # tokens are embedded by the new checkpoint
            units.append(f"layer {self.layer_id}")  # the last of a layer
        return any(unit not in done for unit in units)


def make_stages(fixed: Sequence[TensorEntry], text: TextConfig) -> list[WorkStage]:
    """All stages in their order. fixed: in the order of the files."""
    entries: dict[int | None, list[TensorEntry]] = {None: []}
    entries |= {layer_id: [] for layer_id in range(text.num_hidden_layers)}
    for entry in fixed:
        entries[layer_of(entry.name)].append(entry)
    return [WorkStage(layer_id, tuple(own)) for layer_id, own in entries.items()]


def source_files(
    stages: Sequence[WorkStage], accounts: Accounts, done: Collection[str], *, calibrates: bool
) -> list[list[str]]:
    """For each stage the names of the source's files that are read, in the order of their first use."""
    files: dict[int | None, dict[str, None]] = {stage.layer_id: {} for stage in stages}
    # Experts come behind what else is in the layer.
    for name, source in sorted(accounts.sources.items(), key=lambda pair: pair[0].startswith("experts.")):
        files[layer_of(name)] |= dict.fromkeys(part.path.name for part in source.stored_parts)
    if accounts.tied_head is not None:  # compared with the embedding
        files[None][accounts.tied_head.path.name] = None
    return [
        list(files[stage.layer_id]) if stage.reads_source(done, calibrates=calibrates) else []
        for stage in stages
    ]


def layer_of(name: str) -> int | None:
    """The layer of our tensor `name`, plain or packed; None if it lies outside of the layers."""
    match = _IN_LAYER.match(name)
    return match and int(match[1])
