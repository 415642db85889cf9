"""Describes a quantizing job: everything that a caller decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ernie_calibration.sequences import EncodedSample
from ernie_local.adapters.source import AdapterSource
from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.packing.formats import find_format
from ernie_local.packing.layout import find_foreign
from ernie_quant.foreign import FOREIGN_METHODS, check_library
from ernie_quant.hub_source import HubSource
from ernie_quant.place import check_empty, check_out, is_made, partial_of
from ernie_quant.recipe import Recipe
from ernie_quant.units import OnUnit
from ernie_quant.work import ResumeMode, check_resume, tell_nobody


@dataclass(frozen=True, slots=True)
class Job:
    """Source, output and settings. sequences: calibration tokens, which only the method `gptq` needs.

    on_unit: called with each finished unit, the seconds so far and about the seconds of all; at first with
    an empty name and about the seconds of earlier runs. should_stop: asked after every unit. on_note: called
    with a line about something that could not be done. statistics: the measurements behind `tables`, copied
    to statistics.json in the checkpoint. most_memory: bytes that the work may take; a job that needs more is
    refused. hub: of which model on the hub `source` is the directory. on_download: as of ShardStore;
    on_others: as of Units. lora: adapters that are added to the weights of `source`.
    """

    source: Path
    out: Path
    tables: QuantizationConfig
    recipe: Recipe
    sequences: Sequence[EncodedSample] = ()
    resume: ResumeMode = "auto"
    on_unit: OnUnit = tell_nobody
    should_stop: Callable[[], bool] | None = None
    on_note: Callable[[str], None] = tell_nobody
    statistics: Path | None = None
    most_memory: int | None = None
    hub: HubSource | None = None
    on_download: Callable[[int, int], None] = tell_nobody
    lora: Sequence[AdapterSource] = ()
    on_others: Callable[[str], None] = tell_nobody

    @property
    def source_name(self) -> str:
        """What to call the source to the user, who knows nothing of a temporary directory with headers."""
        return str(self.source) if self.hub is None else self.hub.identity

    def note(self, line: str) -> None:
        """Tell `on_note`, with the source called by its name."""
        self.on_note(line.replace(str(self.source), self.source_name))

    @property
    def calibrates(self) -> bool:
        """Whether experts are made from calibration tokens."""
        return self.recipe.method == "gptq" and bool(self.tables.experts)

    @property
    def recipe_without_data(self) -> Recipe:
        """For weights that have no second moments."""
        return Recipe("clip") if self.recipe.method == "gptq" else self.recipe

    @property
    def partial(self) -> Path:
        """The directory of the work until it is complete."""
        return partial_of(self.out)


def check_job(job: Job, config: ModelConfig) -> None:
    """Refuse an impossible source, method or output (UsageError), at no cost.

    DoesNotFit if the method needs a library that is not installed.
    """
    if config.quantization is not None:
        raise UsageError(
            f"{job.source_name} is quantized already",
            "quantizing it again would add up the errors of both",
            "start from the bfloat16 checkpoint",
        )
    if job.recipe.by_answers and job.hub is not None and job.hub.model is not None:
        raise UsageError(
            f"gradients of the answers of {job.source_name}, whose weights are fetched layer by layer",
            "they go through all layers and back before the first one is quantized: two more downloads",
            "download the model first, or quantize without them",
        )
    method = job.recipe.method
    experts = {name for formats in job.tables.experts.values() for name in formats}
    own = {name for name in experts if find_foreign(name) is None}
    if own if method in FOREIGN_METHODS else experts - own:
        raise UsageError(
            f"experts in {', '.join(sorted(experts))} by the method {method}",
            f"{', '.join(FOREIGN_METHODS)} make formats of their own, the other methods make ours",
            "use the format that choose_expert_format returns for the method",
        )
    if method == "clip" and any(find_format(name).is_trellis for name in own):
        raise UsageError(
            f"experts in {', '.join(sorted(own))} by the method clip",
            "a trellis has no range whose ends could be clipped",
            "use gptq, or rtn for a quick checkpoint without calibration",
        )
    if job.recipe.by_answers and not _asks_answers(job, experts):
        formats = ", ".join(sorted(experts)) or "no format"
        raise UsageError(
            f"{parameter('by_answers')} for experts in {formats} by the method {method}",
            "only gptq asks the answers, and only for experts of less than 8 bits",
            f"use gptq with less than 8 bits, or remove {parameter('by_answers')}",
        )
    if method in FOREIGN_METHODS:
        check_library(method)
    check_out(job.out, job.source)
    if not is_made(job.out):
        check_resume(job.partial, job.resume)
    elif job.resume == "never":
        check_empty(job.out)


def _asks_answers(job: Job, experts: set[str]) -> bool:
    small = {name for formats in job.tables.small_experts.values() for name in formats}
    return job.calibrates and not all(find_format(name).has_fp16_scales for name in experts | small)
