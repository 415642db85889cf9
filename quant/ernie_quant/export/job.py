"""Describes an export: everything that a caller decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ernie_calibration.sequences import EncodedSample
from ernie_local.adapters.low_rank import Adapter
from ernie_quant.export.compressed_layout import CompressedLayout
from ernie_quant.place import partial_of
from ernie_quant.units import OnUnit
from ernie_quant.work import ResumeMode, tell_nobody

ExportTarget = Literal["hf", "vllm"]
ExportMethod = Literal["gptq", "clip", "rtn"]
PLAIN = CompressedLayout(None, None)


@dataclass(frozen=True, slots=True)
class ExportJob:
    """What is exported and where to. source_name: what to call the source to readers of the new checkpoint.

    target: `hf` for weights alone, `vllm` for a checkpoint that engines serve. layout: what is compressed;
    method: how; sequences: calibration tokens, which only int4 experts by `gptq` need. tensor_parallel: over
    how many GPUs it must be possible to split it. on_unit, should_stop, on_note: as of Job. adapter: what is
    merged into the weights; adapter_identity: a hash of it, and empty without one.
    """

    source: Path
    out: Path
    source_name: str
    target: ExportTarget = "hf"
    layout: CompressedLayout = PLAIN
    method: ExportMethod = "clip"
    sequences: Sequence[EncodedSample] = ()
    tensor_parallel: int | None = None
    resume: ResumeMode = "auto"
    on_unit: OnUnit = tell_nobody
    should_stop: Callable[[], bool] | None = None
    on_note: Callable[[str], None] = tell_nobody
    adapter: Adapter | None = None
    adapter_identity: str = ""

    @property
    def calibrates(self) -> bool:
        """Whether experts are made from calibration tokens; 8 bits lose next to nothing without."""
        return self.method == "gptq" and self.layout.experts is not None and self.layout.experts.bits == 4

    @property
    def partial(self) -> Path:
        """The directory of the work until it is complete."""
        return partial_of(self.out)
