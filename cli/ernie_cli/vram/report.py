"""Asks the planner what `ernie-local vram` shows: the model, the chat, plans, speeds, and what makes it fit.

Joins the quantizer's choice of formats with the planner. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ernie_cli.images import open_given_images
from ernie_cli.settings import stored_profile
from ernie_cli.vram.command import VramOptions
from ernie_local import defaults
from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.hub import outlined_model
from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.media.detail import WantedImage, settle_details, with_image_tokens
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.media.image_view import ImageView
from ernie_local.media.processor_config import with_max_pixels
from ernie_local.packing.formats import find_format, formats_for
from ernie_local.planner.fit import longest_context
from ernie_local.planner.free_memory import free_memory, process_memory
from ernie_local.planner.gpu import GpuPlan, plan_gpu
from ernie_local.planner.gpus import (
    UNKNOWN_GPU,
    GpuModel,
    find_gpu_model,
    gpu_models,
    last_pytorch,
    match_gpu_model,
)
from ernie_local.planner.model_size import (
    PUBLISHED_NAME,
    ModelSize,
    published_model,
    read_model,
    with_formats,
)
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.profile import MachineProfile
from ernie_local.planner.ram import Budget, CpuPlan, plan_cpu
from ernie_local.planner.rates import GpuRates
from ernie_local.planner.speed import Band, Speed, cpu_speed, gpu_speed
from ernie_local.planner.start import Start, predict_start
from ernie_local.planner.terms import MemoryPlan
from ernie_local.sizes import MIB, format_bytes, parse_bytes, parse_count

_SIZE = re.compile(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", re.ASCII)
# By --bits; mixed bits are 2.5 per weight on average.
_EXPERT_FORMATS = {str(one.bits): one for one in formats_for("experts")} | {"mixed": find_format("w2l")}
_BEST_FIRST = (
    "16",
    *sorted(_EXPERT_FORMATS, key=lambda bits: _EXPERT_FORMATS[bits].nominal_bits, reverse=True),
)
_STEP = 64 << 20  # suggested limits are multiples of it


@dataclass(frozen=True, slots=True)
class Target:
    """Where it should run. vram_bytes: usable memory of the GPU, None where the CPU computes. last_pytorch:
    for that GPU, None if newer ones are. profile: of this machine, None if it was not measured."""

    ram: Budget
    vram_bytes: int | None = None
    gpu_name: str | None = None
    gpu_rates: GpuRates | None = None
    profile: MachineProfile | None = None
    last_pytorch: str | None = None


@dataclass(frozen=True, slots=True)
class Chats:
    """The chat that is planned for, in the number types of the CPU and of a GPU."""

    on_cpu: ChatPlan
    on_gpu: ChatPlan

    def with_context(self, context_size: int) -> Chats:
        """The same of another length."""
        return Chats(
            *(dataclasses.replace(chat, context_size=context_size) for chat in (self.on_cpu, self.on_gpu))
        )


@dataclass(slots=True)
class ContextChoice:
    """What a context of this length leaves: experts in memory, and speed."""

    ctx_size: int
    resident_share: float  #: Share of the text experts that are in fast memory in decode.
    peak_bytes: int
    decode_tok_s: Band


@dataclass(slots=True)
class Report:
    """Plans of one model on one target. start: None where it does not fit, or nothing was measured here.
    solved: what --solve found; flags: options that make it fit; choices: contexts up to the longest that
    fits."""

    model: ModelSize
    chats: Chats
    target: Target
    cpu: CpuPlan
    cpu_speed: Speed
    start: Start | None
    gpu: GpuPlan | None
    gpu_speed: Speed | None
    solved: dict[str, str | int | None] | None = None
    flags: list[str] = field(default_factory=list)
    choices: list[ContextChoice] = field(default_factory=list)

    @property
    def conversation(self) -> ChatPlan:
        """With the GPU if one is asked about, else in RAM."""
        return self.chats.on_cpu if self.gpu is None else self.chats.on_gpu

    @property
    def fits(self) -> bool:
        """On the GPU if one is asked about, else in RAM."""
        return self.cpu.fits if self.gpu is None else self.gpu.fits

    @property
    def memory(self) -> MemoryPlan:
        """Of the GPU if one is asked about, else of RAM. Its peak may exceed the limit where it `fits`."""
        return self.cpu.memory if self.gpu is None else self.gpu.vram

    @property
    def resident_share(self) -> float:
        """Share of the text experts that are in fast memory in decode."""
        return self.cpu.resident_share if self.gpu is None else self.gpu.resident_share


def find_model(options: VramOptions) -> ModelSize:
    """The model of the options, as it is; ModelUnusable where there is none."""
    name = options.model
    if name.lower() == PUBLISHED_NAME:
        model = published_model()
    else:
        # Named as the user named it: nano's directory would mean nothing to them.
        with outlined_model(name) as directory:
            model = dataclasses.replace(read_model(directory), name=name)
    processor = with_max_pixels(model.processor, options.max_pixels_count())
    return dataclasses.replace(model, processor=with_image_tokens(processor, options.image_tokens_count()))


def as_quantized(model: ModelSize, bits: str | None, dense: str) -> ModelSize:
    """The model with its experts in this many bits; None and 16 leave it as it is."""
    if bits is None or (bits == "16" and model.config.quantization is None):
        return model
    low_bit = _EXPERT_FORMATS.get(bits)
    choice = FormatChoice(experts=None if low_bit is None else low_bit.name, dense=dense)
    return with_formats(model, choice, parameter("bits", bits))


def converse(model: ModelSize, options: VramOptions, images: tuple[ImageReport, ...] | None = None) -> Chats:
    """The conversation that the options describe; where they say nothing, what a chat would choose.

    images: None for those of the options.

    DoesNotFit for a context beyond the model's, or that images alone fill; ModelUnusable for images where the
    model's files do not say how they are read.
    """
    asked = None if options.context_size is None else parse_count(options.context_size, "context_size")
    model_limit = model.config.text.max_position_embeddings
    context_size = defaults.context_tokens(asked, model_limit)
    if images is None:
        images = tuple(_measured(options, model, context_size))
    chats = Chats(
        *(ChatPlan(context_size, *_number_types(model, options, on_gpu), images) for on_gpu in (False, True))
    )
    chats.on_cpu.check_images(model_limit)
    return chats


def _number_types(model: ModelSize, options: VramOptions, on_gpu: bool) -> tuple[str, str]:
    """To compute in, and of the KV cache, as `load` chooses them."""
    is_packed = model.config.quantization is not None
    dtype: str = options.dtype
    if dtype == defaults.AUTO:
        # Only where it decides: finding the size of files takes longer than all else.
        plain_bytes = 0 if is_packed or on_gpu else model.file_bytes
        dtype = defaults.compute_dtype(plain_bytes, on_gpu=on_gpu)
    kv_dtype: str = options.kv_dtype
    return dtype, defaults.kv_dtype(dtype, is_packed=is_packed) if kv_dtype == defaults.AUTO else kv_dtype


def _measured(options: VramOptions, model: ModelSize, context_size: int) -> Iterator[ImageReport]:
    """The images of --image; InputUnreadable for a file that is none."""
    views = [view for source in options.image for view in _views(source, options)]
    wanted = [WantedImage(name, view.cropped_size, options.detail, model.processor) for name, view in views]
    for (name, view), (processor, notes) in zip(views, settle_details(wanted, context_size), strict=True):
        crop = view.crop if view.is_cropped else None
        yield measure_image(name, view.opened_size, processor, notes, crop)


def _views(source: str, options: VramOptions) -> Iterator[tuple[str, ImageView]]:
    """The name of each image of `source`, a size or a file, and the part of it that is read."""
    match = _SIZE.fullmatch(source)
    if match is None:
        from ernie_local.media.trim import trim_margins

        for opened in open_given_images([source], password=options.password):
            yield opened.name, (trim_margins(opened) if options.trim else opened).view
    elif options.trim:
        raise UsageError(
            f"--trim with --image {source}", "a size has no margins that could be cut", "give the file itself"
        )
    else:
        yield source, ImageView.whole((int(match[1]), int(match[2])))


def ram_budget(options: VramOptions) -> Budget:
    """The RAM that --ram names, else what is free less --reserve."""
    if options.ram is not None and options.ram != "auto":
        return Budget(parse_bytes(options.ram, "ram"))
    reserve = None if options.reserve is None else parse_bytes(options.reserve, "reserve", least=0)
    # What this command uses is free again when the model is loaded.
    return Budget(None, free_memory() + process_memory(), reserve)


def find_target(options: VramOptions, budget: Budget) -> Target:
    """The GPU that was named, else this machine's, else none."""
    from ernie_local.machine.hardware import installed_gpus

    profile = stored_profile()
    asked = None if options.vram is None else parse_bytes(options.vram, "vram")
    if options.gpu is not None:
        gpu = find_gpu_model(options.gpu)
        return Target(budget, asked or gpu.usable_bytes, gpu.name, gpu.rates, profile, gpu.last_pytorch)
    if asked is not None:
        return Target(budget, asked, f"a GPU with {options.vram}", UNKNOWN_GPU, profile)
    local = next((gpu for gpu in installed_gpus() or () if gpu.free_bytes is not None), None)
    if local is None:
        return Target(budget, profile=profile)
    known = match_gpu_model(local.name, local.total_bytes)
    rates = UNKNOWN_GPU if known is None else known.rates
    if profile is not None and profile.rates.gpu is not None:
        rates = profile.rates.gpu
    last = last_pytorch(local.compute_capability)
    return Target(budget, local.free_bytes, local.name, rates, profile, last)


def report_on(model: ModelSize, chats: Chats, target: Target) -> Report:
    """Plans and speeds."""
    cpu = plan_cpu(model, chats.on_cpu, target.ram)
    share = None if cpu.slots_bytes is None else cpu.resident_share
    is_packed = model.config.has_packed_experts
    rates = None if target.profile is None else target.profile.rates_for(is_packed=is_packed)
    speed = cpu_speed(model, chats.on_cpu, share, rates)
    start = None
    if rates is not None and cpu.placement is not None:
        start = predict_start(model, cpu.placement, chats.on_cpu.item_bytes, rates)
    gpu = on_gpu = None
    if target.vram_bytes is not None:
        gpu = plan_gpu(model, chats.on_gpu, target.vram_bytes, target.ram)
        assert target.gpu_rates is not None
        on_gpu = gpu_speed(model, chats.on_gpu, gpu, target.gpu_rates)
    return Report(model, chats, target, cpu, speed, start, gpu, on_gpu)


def report_on_gpus(
    model: ModelSize, conversation: ChatPlan, ram: Budget
) -> Iterator[tuple[GpuModel, GpuPlan, Speed]]:
    """Every GPU of the table."""
    for gpu in gpu_models():
        plan = plan_gpu(model, conversation, gpu.usable_bytes, ram)
        yield gpu, plan, gpu_speed(model, conversation, plan, gpu.rates)


def solve(report: Report, options: VramOptions, plain: ModelSize) -> Report:
    """The report on the best setting that fits, and that setting; the given report where none fits.

    plain: the model before --bits.
    """
    found: Report | None
    solved: dict[str, str | int | None]
    if options.solve == "experts":
        bank = report.model.config.text.text_bank
        num_experts = 0 if bank is None else bank.num_experts
        resident = int(report.resident_share * num_experts) if report.fits else 0
        found, solved = report, {"experts_per_layer": resident, "of": num_experts}
    elif options.solve == "ctx":
        longest = _longest_context(report)
        found = None if longest is None else _with_context(report, longest)
        if found is not None:
            found.choices = _choices_up_to(found)
        solved = {"ctx_size": longest}
    else:
        bits, found = _most_bits(report, options, plain)
        solved = {"bits": bits}
    found = found or report
    found.solved = solved
    return found


def _with_context(report: Report, context_size: int) -> Report:
    return report_on(report.model, report.chats.with_context(context_size), report.target)


def _choices_up_to(longest: Report) -> list[ContextChoice]:
    """Contexts, each twice as long as the one before, up to that of `longest`."""
    most, least = longest.conversation.context_size, longest.conversation.image_tokens + 512
    sizes = [1024 << step for step in range(2, 40) if least <= 1024 << step < most]
    reports = [*(_with_context(longest, size) for size in sizes), longest]
    return [
        ContextChoice(
            one.conversation.context_size,
            one.resident_share,
            one.memory.peak.best,
            (one.cpu_speed if one.gpu_speed is None else one.gpu_speed).decode,
        )
        for one in reports
    ]


def _longest_context(report: Report) -> int | None:
    def fits(context_size: int) -> bool:
        found = _with_context(report, context_size)
        return found.fits and found.memory.fits

    least = max(1024, -(-(report.conversation.image_tokens + 512) // 1024) * 1024)
    most = report.model.config.text.max_position_embeddings
    return longest_context(most, fits, least) if least <= most else None


def _most_bits(report: Report, options: VramOptions, plain: ModelSize) -> tuple[str | None, Report | None]:
    """The most bits with every text expert in fast memory, else the fewest bits that fit at all."""
    fewest: tuple[str | None, Report | None] = (None, None)
    for bits in _BEST_FIRST:
        found = _with_bits(report, bits, options, plain)
        if found.fits:
            fewest = bits, found
            if found.resident_share >= 1 and found.memory.fits:
                break
    return fewest


def _with_bits(report: Report, bits: str, options: VramOptions, plain: ModelSize) -> Report:
    model = as_quantized(plain, bits, options.dense)
    return report_on(model, converse(model, options, report.conversation.images), report.target)


def flags_that_fit(report: Report, options: VramOptions, plain: ModelSize) -> list[str]:
    """Options, each of which alone makes it fit, the mildest first."""
    flags: list[str] = []
    longest = _longest_context(report)
    if longest is not None and longest < report.conversation.context_size:
        flags.append(f"--ctx-size {longest // 1024}k")
    if plain.config.quantization is None:
        tried = _BEST_FIRST[_BEST_FIRST.index(options.bits or "16") + 1 :]
        enough = next((bits for bits in tried if _with_bits(report, bits, options, plain).fits), None)
        if enough is not None:
            flags.append(f"--bits {enough}")
    if report.gpu is None:
        flags += _ram_flags(report.target.ram, report.cpu.least_bytes)
    elif report.gpu.tier == "needs ram":
        flags += _ram_flags(report.target.ram, report.gpu.host_bytes)
    else:
        flags.append(f"a GPU with {_rounded_up(report.gpu.least_bytes)} of usable memory")
    return flags


def _ram_flags(ram: Budget, least: int) -> Iterator[str]:
    """Of this machine, whose free memory was looked at, no more than is free can be had."""
    free = ram.free_bytes
    if free is None or -(-least // _STEP) * _STEP <= free:
        yield f"--ram {_rounded_up(least)}"
    if free is not None and (spare := (free - least) // MIB) > 0:
        yield f"--reserve {spare}MiB"
    if free is not None and free < least:
        yield f"{_rounded_up(least)} of free memory"


def _rounded_up(num_bytes: int) -> str:
    return f"{-(-num_bytes // _STEP) * _STEP >> 20}MiB"


def does_not_fit(report: Report) -> DoesNotFit:
    """The error of a report that does not fit."""
    gpu = report.gpu
    if gpu is None:
        memory, least, place = report.cpu.memory, report.cpu.least_bytes, "of RAM"
    elif gpu.tier == "needs ram":
        memory, least, place = gpu.ram, gpu.host_bytes, "of RAM besides the GPU"
    else:
        memory, least, place = gpu.vram, gpu.least_bytes, f"on {report.target.gpu_name}"
    return DoesNotFit(
        f"the model needs at least {format_bytes(least)} {place}; "
        f"{format_bytes(memory.limit_bytes or 0)} is available",
        "dense weights, the KV cache, workspace and the experts of one token must fit",
        " or ".join(report.flags),
    )
