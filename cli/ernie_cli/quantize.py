"""The command `ernie-local quantize`: the order of its steps, its result, and what it says.

Everything that can be wrong is checked before samples are drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from signal import SIGINT, SIGTERM
from threading import Event
from typing import TYPE_CHECKING, Literal

from ernie_cli.console import Console
from ernie_cli.json_object import fill_result
from ernie_cli.quantize_options import (
    DEFAULT_BITS,
    QuantizeOptions,
    check_quantize_options,
    without_experts,
)
from ernie_cli.quantize_source import download_lines, opened_source
from ernie_cli.settings import efficiency_cores
from ernie_cli.signals import raising_terminated, stop_requests, telling_what_is_kept
from ernie_local.sizes import MIB, format_bytes, parse_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ernie_calibration.sequences import EncodedSample
    from ernie_local.config import ModelConfig, QuantizationConfig
    from ernie_quant.hub_source import HubSource
    from ernie_quant.job import Job
    from ernie_quant.measurements import Measurements
    from ernie_quant.mixed_tables import FilesBytes

_MIXED_BITS = 2.5  # per weight of the routed experts, where no size is asked for
# A weight without calibration, on two cores: matrices of 1536 x 2560 took a core 0.2 s, with HQQ 9.6 s.
_ROUNDING_SECONDS, _HQQ_SECONDS = (taken / (1536 * 2560) / 2 for taken in (0.2, 9.6))


@dataclass
class DownloadObject:
    """What is fetched of a source on the hub, and how much of it is on the disk at any time."""

    num_files: int  #: Files of weights that are not in the cache of the hub.
    num_fetches: int  #: More than `num_files` where some are fetched twice, to keep few on the disk.
    num_bytes: int  #: Of all fetches.
    seconds: float | None  #: At the rate at which a part of the largest file just came; null without one.
    most_files: int  #: Files on the disk at any time, besides those that were in the cache before.
    disk_bytes: int  #: Bytes of these; 0 with `--keep-source`, which keeps them in the cache.


@dataclass
class PlanObject:
    """What the job needs."""

    weight_bytes: int  #: Of its weight files.
    small_page_bytes: int  #: Of these, the second pages of `--dual`.
    companion_bytes: int  #: Of the small files that are copied beside them.
    scratch_bytes: int  #: Disk besides them and files of the source while it runs.
    memory_bytes: int  #: Most memory at any time.
    seconds: float | None  #: Null for methods without calibration.
    download: DownloadObject | None  #: Null where all weights of the source are here.


@dataclass
class FitObject:
    """What `--fit` chose for a GPU of that size, by predictions."""

    bits: str | None  #: Of all experts, as `--bits` names them; null where mixed bits fill the GPU.
    dense: str  #: The format of other matrices, or `auto` where it is measured for each layer.
    usable_bytes: int  #: What programs have of such a GPU.
    slots_bytes: int  #: Memory for experts in decode; where bits are mixed, of the smallest formats.
    resident_share: float  #: Share of the text experts that are on the GPU.
    host_bytes: int  #: RAM with which no expert is read from disk; 0 where all are on the GPU.


@dataclass
class ExpertObject:
    """What a calibrated expert was made from, and how much of the power of its outputs was lost."""

    layer: int
    bank: Literal["text", "vision"]
    expert: int
    tokens: int  #: Calibration tokens that the router sent to it.
    effective_tokens: float
    """(sum w)^2 / sum w^2 of their weights w; 0: made from the prior alone. A weight is the squared router
    weight, with --by-answers times the root of the gradient's length."""
    gate_up_error: float
    """Share of the power of the outputs of gate and up that was lost, over the second moments that were
    used."""
    down_error: float  #: The same of down.
    small_gate_up_error: float | None  #: The same of its small page; null without `--dual`.
    small_down_error: float | None  #: The same of its small page; null without `--dual`.


@dataclass
class QuantizeResult:
    """One object, whatever the end of the run."""

    out: str | None = None  #: The directory, as given.
    weight_bytes: int | None = None  #: Bytes of its weight files.
    calibration_tokens: int | None = None
    """Tokens that went through the model; 0 for all methods but `gptq`."""
    seconds: float | None = None  #: Of this run; a resumed run counts its own only.
    plan: PlanObject | None = None  #: With `--dry-run`.
    fit: FitObject | None = None  #: With `--fit`.
    notes: list[str] = field(default_factory=list)
    """Texts about what was not done: files of the source that were not copied, checks that were left out."""
    experts: list[ExpertObject] = field(default_factory=list)
    """One for each calibrated expert; empty for all methods but `gptq`."""


def quantize(options: QuantizeOptions, result: QuantizeResult) -> None:
    """Make a compact checkpoint whose experts have 2 to 8 bits, or as many as each one needs.

    OUT appears when it is complete; until then the work is in OUT.partial. After Ctrl-C, SIGTERM (exit code
    75) or a crash, the same command continues where it stopped. Started again while it runs, also on another
    machine with the same disk, it shares the work (docs/scale.md).
    """
    from ernie_cli.calibration_samples import check_samples

    console = Console(quiet=options.as_json)
    with console.working("starting"):
        from ernie_local.loading.options import use_threads

    with console.telling_warnings():
        use_threads(options.threads, efficiency_cores=efficiency_cores(options.threads))
    check_samples(options, options.method)
    check_quantize_options(options)
    with opened_source(options, console) as (directory, hub, fitted, fit):
        options = _for_banks(fitted, directory, console)
        if options.is_mixed:
            _check_statistics(options.statistics_path)
        job = _plan(options, directory, hub)
        if options.target_size is not None:
            _check_size(job, options, options.target_size)
        if fit is not None:
            result.fit = fill_result(FitObject, fit, fit.plan, usable_bytes=fit.plan.vram.limit_bytes)
        # What is measured has its folder beside OUT, which goes whoever ends this.
        with telling_what_is_kept(lambda: _what_is_kept(job, options)), raising_terminated():
            _quantize(job, options, console, result)


def _for_banks(options: QuantizeOptions, directory: Path, console: Console) -> QuantizeOptions:
    """The options for the banks of experts that the model has; UsageError where they do not apply."""
    from ernie_local.config import read_config

    if read_config(directory).text.banks:
        return options
    options = without_experts(options)
    console.note(
        f"the model has no experts, which is what is calibrated: its matrices are made in {options.dense} by "
        f"{options.method}, without samples"
    )
    return options


def _what_is_kept(job: Job, options: QuantizeOptions) -> str:
    if job.partial.exists():
        return f"finished units are kept in {job.partial}, and the same command continues there"
    if (job.out / "config.json").exists():
        return f"{job.out} is complete"
    statistics = options.statistics_path
    if options.is_mixed and statistics.exists():
        return f"measurements are kept in {statistics}, and the same command continues with them"
    return "nothing was written yet"


def _check_statistics(path: Path) -> None:
    """Raise what reading the measurements there would, or writing them: samples take minutes to draw."""
    from ernie_quant.measurements import read_measurements
    from ernie_quant.place import check_new_file

    if path.exists():
        read_measurements(path, {})
    else:
        check_new_file(path)


def _quantize(job: Job, options: QuantizeOptions, console: Console, result: QuantizeResult) -> None:
    from ernie_cli.calibration_samples import draw_sequences
    from ernie_quant.pipeline import check_memory

    most_memory = None if options.max_ram is None else parse_bytes(options.max_ram, "max_ram")
    sequences = draw_sequences(job.source, options, console) if options.method == "gptq" else []
    job = replace(job, sequences=sequences, most_memory=most_memory)
    if options.is_mixed:
        if most_memory is not None:
            check_memory(job)  # with the smallest formats, before measuring takes hours
        job = _mixed_job(job, options, sequences, console)
    if options.dry_run:
        _tell_plan(job, options, console, result)
        return
    _run(job, console, result)
    if job.statistics is not None and job.statistics != options.statistics:
        job.statistics.unlink(missing_ok=True)  # the checkpoint has it


def _plan(options: QuantizeOptions, directory: Path, hub: HubSource | None) -> Job:
    from ernie_local.adapters.merged import read_adapters
    from ernie_local.adapters.source import AdapterSource
    from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
    from ernie_local.config import read_config
    from ernie_quant.foreign import choose_expert_format
    from ernie_quant.job import Job, check_job
    from ernie_quant.recipe import Recipe

    config = read_config(directory)
    # Of mixed bits the smallest ones for now: what fits is known when all is measured.
    bits = "2" if options.is_mixed else options.bits or DEFAULT_BITS
    experts = choose_expert_format(options.method, bits, options.group_size)
    dense = "w4" if options.dense == "auto" else options.dense or "w8"
    tables = format_tables(
        config, FormatChoice(experts, dense, "w8", "w8", small_experts="w2" if options.dual else None)
    )
    lora = [AdapterSource.parse(one) for one in options.lora]
    recipe = Recipe(options.method, by_answers=options.by_answers)
    job = Job(directory, options.out, tables, recipe, resume=options.resume, hub=hub, lora=lora)
    check_job(job, config)
    read_adapters(lora, config)  # one that does not fit shows before samples are drawn
    return job


def _check_size(job: Job, options: QuantizeOptions, target_size: str) -> None:
    """DoesNotFit for a size below that of the smallest formats: measuring takes hours."""
    from ernie_local.config import read_config
    from ernie_quant.mixed_tables import room_in_files, smallest_tables

    config = read_config(job.source)
    with _counting_files(job, config) as files_bytes:
        smallest = smallest_tables(config, options.dense or "w8")
        room_in_files(smallest, parse_bytes(target_size, "target_size"), files_bytes)


@contextmanager
def _counting_files(job: Job, config: ModelConfig) -> Iterator[FilesBytes]:
    """Counts the bytes of all weight files of a checkpoint in given tables."""
    from ernie_local.checkpoint.reader import open_checkpoint
    from ernie_quant.pipeline import checkpoint_bytes

    with open_checkpoint(job.source, config) as checkpoint:
        yield lambda tables: checkpoint_bytes(checkpoint, config, tables)


def _mixed_job(
    job: Job, options: QuantizeOptions, sequences: Sequence[EncodedSample], console: Console
) -> Job:
    """The job with formats by measurement, and the file that holds the measurements; notes say which."""
    from ernie_cli.progress import UnitProgress
    from ernie_local.config import read_config
    from ernie_quant.mixed_tables import allocation_lines
    from ernie_quant.probe import measurements_in

    config = read_config(job.source)
    path = options.statistics_path
    console.note(
        f"measurements are read from {path}" if path.exists() else f"measuring, measurements go to {path}"
    )
    with UnitProgress(console) as progress:
        identity = None if job.hub is None else job.hub.identity
        measured = measurements_in(path, job.source, sequences, progress.show, identity, job.lora)
    tables = _mixed_tables(job, options, config, measured)
    for line in allocation_lines(tables, measured):
        console.note(line)
    return replace(job, tables=tables, statistics=path)


def _mixed_tables(
    job: Job, options: QuantizeOptions, config: ModelConfig, measured: Measurements
) -> QuantizationConfig:
    """Formats that lose least within a size, on a GPU, or with as many bits on average."""
    from ernie_local.media.processor_config import read_processor_config
    from ernie_local.planner.gpus import usable_bytes
    from ernie_quant.formats_for_gpu import plan_in
    from ernie_quant.mixed_tables import MixedTables

    tables = MixedTables(config, measured, options.dense or "w8")
    if options.target_size is not None:
        with _counting_files(job, config) as files_bytes:
            return tables.of_size(parse_bytes(options.target_size, "target_size"), files_bytes)
    if options.fit is not None:
        processor = read_processor_config(job.source, config.tower)
        vram = usable_bytes(parse_bytes(options.fit, "fit"))
        return tables.for_gpu(lambda one: plan_in(config, processor, one, vram).holds_text_experts)
    return tables.of_bits(_MIXED_BITS)


def _run(job: Job, console: Console, result: QuantizeResult) -> None:
    from ernie_cli.progress import UnitProgress
    from ernie_local.config import read_config
    from ernie_quant.pipeline import quantize_checkpoint
    from ernie_quant.report.contents import measure_coverage, table_lines, unreached_lines

    is_asked = Event()

    def ask_to_stop() -> None:
        is_asked.set()
        console.note(
            f"stopping after the current unit, finished ones stay in {job.partial}; "
            "press again to stop at once"
        )

    def note(line: str) -> None:
        result.notes.append(line)
        console.note(line)

    started = time.perf_counter()
    with (
        UnitProgress(console) as progress,
        stop_requests(ask_to_stop, SIGINT, SIGTERM),
        console.telling_warnings(),
    ):
        reports = quantize_checkpoint(
            replace(
                job,
                on_unit=progress.show,
                on_download=progress.show_download,
                on_others=progress.show_others,
                should_stop=is_asked.is_set,
                on_note=note,
            )
        )
    result.out, result.seconds = str(job.out), time.perf_counter() - started
    result.weight_bytes = sum(path.stat().st_size for path in job.out.glob("*.safetensors"))
    result.calibration_tokens = sum(len(sequence.token_ids) for sequence in job.sequences)
    result.experts = [
        fill_result(ExpertObject, report, layer=layer_id, bank=bank, expert=expert_id)
        for (layer_id, bank, expert_id), report in reports.items()
    ]
    console.note(
        f"{job.out}: {result.weight_bytes / MIB:,.1f} MiB of weights, made in {result.seconds:,.0f} s"
    )
    # A line for each bank; quant_report.html has each layer.
    text = read_config(job.source).text
    rows = measure_coverage(reports, text.hidden_size, text.experts_per_token)
    for line in table_lines([row for row in rows if row.layer is None]):
        console.note(line)
    for line in unreached_lines(rows):
        console.warn(line)


def _tell_plan(job: Job, options: QuantizeOptions, console: Console, result: QuantizeResult) -> None:
    import shutil

    from ernie_cli.status import duration
    from ernie_local.checkpoint.parts import expected_tensors, model_parts
    from ernie_local.config import read_config
    from ernie_quant.pipeline import plan_checkpoint

    plan = plan_checkpoint(job)
    result.plan = fill_result(PlanObject, plan)
    free = shutil.disk_usage(job.out.resolve().parent).free
    disk = plan.weight_bytes + plan.companion_bytes + plan.work_bytes
    small = f", {format_bytes(plan.small_page_bytes)} of them small pages" if plan.small_page_bytes else ""
    if plan.seconds is not None:
        told = f"about {duration(plan.seconds)}"
    else:
        config = read_config(job.source)
        weights = sum(part.weights for part in model_parts(expected_tensors(config), config))
        each = _HQQ_SECONDS if options.method == "quanto-hqq" else _ROUNDING_SECONDS
        told = f"roughly {duration(1 + each * weights)} on two cores, by the number of weights"
    console.show(
        [
            f"weights:  {format_bytes(plan.weight_bytes)}, {plan.weight_bytes:,} bytes{small}",
            f"copied:   {format_bytes(plan.companion_bytes)} of other files",
            *(() if plan.download is None else download_lines(plan.download)),
            f"disk:     {format_bytes(disk)} while it runs, {format_bytes(free)} are free",
            f"memory:   at most about {format_bytes(plan.memory_bytes)}",
            f"time:     {told}",
        ]
    )
