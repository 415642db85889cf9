"""What is to be quantized, into what, how, and who is told: everything a caller decides.

Runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.errors import UsageError
from ernie_local.packing.foreign_formats import find_foreign
from ernie_quant.foreign import FOREIGN_METHODS, check_library
from ernie_quant.recipe import Recipe
from ernie_quant.tokens import TokenSequence
from ernie_quant.work import OnUnit, Resume, check_empty


@dataclass(frozen=True, slots=True)
class Job:
    """What to make of what. `sequences`: calibration tokens, needed by the method `gptq` alone.

    on_unit: told the unit that was done, and how much of how much work is; first of all an empty name with
    what was done before. should_stop: asked after every unit. on_note: told in a line what could not be done.
    statistics: the measurements that `tables` come from, kept in the checkpoint as statistics.json.
    most_memory: bytes that the work may take; what needs more is refused before it begins.
    """

    source: Path
    out: Path
    tables: QuantizationConfig
    recipe: Recipe
    sequences: Sequence[TokenSequence] = ()
    resume: Resume = "auto"
    on_unit: OnUnit | None = None
    should_stop: Callable[[], bool] | None = None
    on_note: Callable[[str], None] | None = None
    statistics: Path | None = None
    most_memory: int | None = None

    @property
    def partial(self) -> Path:
        """Where the work goes on until it is whole."""
        return self.out.with_name(self.out.name + ".partial")


def check_job(job: Job, config: ModelConfig) -> None:
    """Raise UsageError for a source, method or place that cannot be; costs nothing.

    DoesNotFit where another library is needed and not installed.
    """
    if config.quantization is not None:
        raise UsageError(
            f"{job.source} is quantized already",
            "quantizing it again would add the errors of both",
            "start from the bfloat16 checkpoint",
        )
    method = job.recipe.method
    experts = {name for formats in job.tables.experts.values() for name in formats}
    own = {name for name in experts if find_foreign(name) is None}
    if own if method in FOREIGN_METHODS else experts - own:
        raise UsageError(
            f"experts in {', '.join(sorted(experts))} by the method {method}",
            f"{', '.join(FOREIGN_METHODS)} make formats of their own, the others ours",
            "let choose_expert_format name the format that belongs to the method",
        )
    if method in FOREIGN_METHODS:
        check_library(method)
    check_empty(job.out)
