"""The command `ernie-local export`: a checkpoint for other programs. Imports nothing heavy before it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from signal import SIGINT, SIGTERM
from threading import Event
from typing import TYPE_CHECKING, Literal

from ernie_cli.calibration_samples import SampleOptions, check_samples, draw_sequences
from ernie_cli.console import Console
from ernie_cli.options import CommonOptions, complete_path, model_argument, option, path_argument
from ernie_cli.signals import stop_requests, telling_what_is_kept
from ernie_local.errors import UsageError
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_local.config import ModelConfig
    from ernie_quant.export.compressed_layout import CompressedLayout
    from ernie_quant.export.job import ExportJob
    from ernie_quant.export.run import ExportCounts, ExportPlan

_OF_VLLM = ("compressed", "tensor_parallel")
_OF_COMPRESSED = ("asymmetric", "group_size", "dense", "method")
_OF_SAMPLES = tuple(each.name for each in fields(SampleOptions))
_FLAGS = {"compressed": "--format", "group_size": "--group"}
_GROUP_SIZES = (128, 64)  # as in ernie_quant, which is not imported for --help


@dataclass(frozen=True, kw_only=True)
class ExportOptions(SampleOptions, CommonOptions):
    """What was said on the command line."""

    model: str = model_argument(metavar="MODEL")
    out: Path = path_argument(metavar="OUT", help="A new directory.")
    target: Literal["hf", "vllm"] = option(
        "--for",
        default="hf",
        help="hf: plain bfloat16 weights in the layout of the hub, from any checkpoint that this program "
        "reads; packed weights are dequantized. vllm: a checkpoint that vLLM serves, with its card and, for "
        "a model with images, its code.",
    )
    compressed: Literal["int4", "int8", "bf16"] | None = option(
        "--format",
        help="With --for vllm: bits of the routed experts, and of all layers of a model without any, as "
        "compressed-tensors has them; bf16 compresses nothing. Default: int4, int8 without experts, bf16 for "
        "a model that is quantized already.",
    )
    asymmetric: bool = option(
        "--asymmetric", default=False, help="With int4: a zero for each group too, which loses a little less."
    )
    group_size: int | None = option(
        "--group", metavar="N", min=1, max=65536, help="Columns that share a scale: 128 (default) or 64."
    )
    dense: Literal["int8", "bf16"] | None = option(
        help="Format of attention, dense layers and shared experts beside int4 and int8. Default: int8."
    )
    method: Literal["gptq", "clip", "rtn"] | None = option(
        help="gptq: calibrate each int4 expert on samples, and clip all else; clip: search the range of each "
        "group; rtn: round to nearest. Default: gptq for int4, else clip."
    )
    tensor_parallel: int | None = option(
        metavar="N", min=1, max=1024, help="With --for vllm: refuse what vLLM cannot split over N GPUs."
    )
    merge_lora: tuple[str, ...] = option(
        "--merge-lora",
        metavar="DIR[:SCALE]",
        help="Add a LoRA adapter to the weights, times SCALE; may be repeated.",
        autocompletion=complete_path,
    )
    resume: Literal["auto", "required", "never"] = option(
        default="auto",
        help="auto: continue with OUT.partial if it exists; required: fail if it does not; never: start "
        "over.",
    )
    dry_run: bool = option("--dry-run", default=False, help="Show the size on the disk. Writes nothing.")


@dataclass
class ExportResult:
    """One object, whatever the end of the run."""

    out: str | None = None  #: The directory, as given.
    disk_bytes: int | None = None  #: What the new checkpoint takes, without README.md and hashes.json.
    weight_bytes: int | None = None  #: Bytes of its weight files.
    tensors: int | None = None  #: In its files; each was read back and compared.
    exact: int | None = None  #: Of these, with the very numbers of the source.
    rounded: int | None = None  #: Rounded from numbers of more digits.
    unpacked: int | None = None  #: Dequantized, and rounded once.
    merged: int | None = None  #: With an adapter's part in them.
    compressed: int | None = None  #: Compressed to fewer bits.
    seconds: float | None = None  #: Of this run.
    notes: list[str] = field(default_factory=list)  #: Texts about what was left out or not checked.


def export_checkpoint(options: ExportOptions, result: ExportResult) -> None:
    """Write a checkpoint for other programs.

    OUT appears when it is complete and every number was read back; until then the work is in OUT.partial.
    After Ctrl-C, SIGTERM (exit code 75) or a crash, the same command continues where it stopped.
    """
    from ernie_cli.progress import downloaded
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.files import free_disk_bytes
    from ernie_quant.export.run import plan_export

    _check_options(options)
    console = Console(quiet=options.as_json)

    def note(line: str) -> None:
        result.notes.append(line)
        console.note(line)

    directory = resolve_model(downloaded(options.model, console))
    job = replace(_job(options, directory), on_note=note)
    plan = plan_export(job)
    if job.calibrates:
        check_samples(options, "gptq")
        if not options.dry_run:
            job = replace(job, sequences=draw_sequences(directory, options, console))
    result.disk_bytes = plan.disk_bytes(job)
    free = format_bytes(free_disk_bytes(options.out))
    size = f"{format_bytes(result.disk_bytes)}, {free} are free on its disk"
    if options.dry_run:
        console.show([f"{options.out} takes {size}"])
        return
    console.note(f"writing {options.out}: {size}")
    started = time.perf_counter()
    kept = f"finished layers are kept in {job.partial}, and the same command continues there"
    with telling_what_is_kept(lambda: kept if job.partial.exists() else f"{job.out} is complete"):
        counts = _run(job, plan, console)
    result.out, result.seconds = str(job.out), time.perf_counter() - started
    result.weight_bytes, result.tensors = counts.num_bytes, counts.tensors
    result.exact, result.rounded, result.unpacked = counts.exact, counts.rounded, counts.unpacked
    result.merged, result.compressed = counts.merged, counts.compressed
    console.note(
        f"{job.out}: {counts.tensors:,} weights, {format_bytes(counts.num_bytes)}, made in "
        f"{result.seconds:,.0f} s and read back: {counts.exact:,} as in the source, {counts.rounded:,} "
        f"rounded, {counts.unpacked:,} dequantized, {counts.merged:,} merged with adapters, "
        f"{counts.compressed:,} compressed"
    )


def _check_options(options: ExportOptions) -> None:
    """UsageError for options that contradict each other; costs nothing."""
    if options.target == "hf":
        why = "that writes plain bfloat16 weights"
        _refuse_given(options, _OF_VLLM, "--for hf", why, "add --for vllm")
        _refuse_given(options, _OF_COMPRESSED, "--for hf", why, "add --for vllm --format int4")
        _refuse_given(options, _OF_SAMPLES, "--for hf", why, "add --for vllm --format int4")
    elif options.compressed is not None:
        _check_format(options, options.compressed, f"--format {options.compressed}")
    if options.group_size not in (None, *_GROUP_SIZES):
        raise UsageError(
            f"--group {options.group_size}: groups have {' or '.join(map(str, _GROUP_SIZES))} columns",
            "the kernels of vLLM read groups of few sizes, and smaller ones take more memory for scales",
            f"--group {_GROUP_SIZES[0]}",
        )


def _check_format(options: ExportOptions, compressed: str, told: str) -> None:
    """UsageError for options of which an export in this format, told as `told`, would make nothing."""
    if compressed == "bf16":
        names = (*_OF_COMPRESSED, *_OF_SAMPLES)
        _refuse_given(options, names, told, "nothing is compressed there", "use --format int4")
        return
    instead, why = "use --format int4 --method gptq", "only int4 experts by gptq read samples"
    if compressed == "int8":
        _refuse_given(options, _OF_SAMPLES, told, why, instead)
        if options.method == "gptq":
            raise UsageError(f"--method gptq with {told}", why, "remove --method, or use --format int4")
    elif options.method not in (None, "gptq"):
        _refuse_given(options, _OF_SAMPLES, f"--method {options.method}", why, instead)


def _refuse_given(
    options: ExportOptions, names: tuple[str, ...], beside: str, why: str, instead: str
) -> None:
    """UsageError for the first option of these that has another value than its default."""
    defaults = {each.name: each.default for each in fields(ExportOptions)}
    for name in names:
        if getattr(options, name) != defaults[name]:
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(f"{flag} with {beside}", why, f"{instead}, or remove {flag}")


def _job(options: ExportOptions, directory: Path) -> ExportJob:
    from ernie_local.adapters.merged import read_adapters
    from ernie_local.adapters.source import AdapterSource
    from ernie_local.config import read_config
    from ernie_quant.export.job import ExportJob
    from ernie_quant.work import adapters_identity

    config = read_config(directory)
    layout = _layout(options, config)
    sources = [AdapterSource.parse(given) for given in options.merge_lora]
    adapter = read_adapters(sources, config)
    is_calibrated = config.text.banks and layout.experts is not None and layout.experts.bits == 4
    return ExportJob(
        directory,
        options.out,
        options.model,
        options.target,
        layout,
        options.method or ("gptq" if is_calibrated else "clip"),
        tensor_parallel=options.tensor_parallel,
        resume=options.resume,
        adapter=adapter,
        adapter_identity=adapters_identity(sources, adapter) if adapter is not None else "",
    )


def _layout(options: ExportOptions, config: ModelConfig) -> CompressedLayout:
    """What is compressed; UsageError for options that do not fit the model."""
    from ernie_quant.export.compressed_layout import CompressedLayout, ExportFormat
    from ernie_quant.export.job import PLAIN

    if options.target == "hf":
        return PLAIN
    has_experts = bool(config.text.banks)
    if not has_experts:
        beside, why = "a model without experts", "all of its layers have the format of --format"
        _refuse_given(options, ("dense",), beside, why, "choose it by --format")
        why = "only routed experts are calibrated"
        _refuse_given(options, _OF_SAMPLES, beside, why, "use --method clip")
    default: ExportFormat = "int4" if has_experts else "int8"
    reason = "" if has_experts else f", as {options.model} has no experts"
    if config.quantization is not None:
        default, reason = "bf16", f", as {options.model} is quantized already"
    compressed = options.compressed or default
    _check_format(options, compressed, f"--format {compressed}" + reason * (options.compressed is None))
    return CompressedLayout.of(
        compressed,
        options.group_size or 128,
        is_symmetric=not options.asymmetric,
        compresses_dense=options.dense != "bf16",
        has_experts=has_experts,
    )


def _run(job: ExportJob, plan: ExportPlan, console: Console) -> ExportCounts:
    from ernie_cli.progress import UnitProgress
    from ernie_quant.export import run

    is_asked = Event()

    def ask_to_stop() -> None:
        is_asked.set()
        console.note(f"stopping after the current layer, finished ones stay in {job.partial}")

    with (
        UnitProgress(console) as progress,
        stop_requests(ask_to_stop, SIGINT, SIGTERM),
        console.telling_warnings(),
    ):
        return run.write_export(replace(job, on_unit=progress.show, should_stop=is_asked.is_set), plan)
