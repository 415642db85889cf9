"""Asks the planner what `ernie-local vram` shows: the model, the chat, plans, speeds, and what makes it fit.

Joins the quantizer's choice of formats with the planner. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ernie_cli.images import open_given_images
from ernie_cli.settings import stored_profile
from ernie_cli.vram.command import VramOptions
from ernie_local import defaults
from ernie_local.checkpoint.hub import outlined_model
from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.media.detail import WantedImage, settle_details, with_image_tokens
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.media.image_view import ImageView
from ernie_local.media.processor_config import ImageProcessorConfig, with_max_pixels
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
    PUBLISHED_NAMES,
    ModelSize,
    published_model,
    read_model,
)
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.profile import MachineProfile
from ernie_local.planner.ram import Budget, CpuPlan, plan_cpu
from ernie_local.planner.rates import GpuRates, Rates
from ernie_local.planner.solve import (
    Machine,
    Obstacle,
    ScannedPage,
    solve_context,
    solve_image,
)
from ernie_local.planner.speed import ASSUMED, Band, Speed, cpu_speed, gpu_sensitivity, gpu_speed
from ernie_local.planner.start import Start, predict_start
from ernie_local.planner.terms import MemoryPlan
from ernie_local.sizes import parse_bytes, parse_count

_SIZE = re.compile(r"([1-9][0-9]{0,5})[xX]([1-9][0-9]{0,5})", re.ASCII)
_LARGE_PAGE = (4961, 7016)  # A4 at 600 dpi


@dataclass(frozen=True, slots=True)
class GivenRates:
    """Rates of --cpu-rate, --link-rate and --disk-rate in bytes a second; None where others count."""

    cpu: float | None = None
    link: float | None = None
    disk: float | None = None

    @staticmethod
    def of(options: VramOptions) -> GivenRates:
        """What was given in GB/s."""
        given = {"cpu": options.cpu_rate, "link": options.link_rate, "disk": options.disk_rate}
        for name, rate in given.items():
            if rate is not None and not math.isfinite(rate):
                raise UsageError(f"--{name}-rate {rate}", "a rate is a number of GB/s", f"--{name}-rate 10")
        return GivenRates(**{name: None if rate is None else rate * 1e9 for name, rate in given.items()})

    def on_host(self, rates: Rates) -> Rates:
        """These rates of a CPU and a disk, or the given ones."""
        if self.cpu is not None:
            rates = dataclasses.replace(rates, memory_bytes_per_second=self.cpu, format_rates={})
        return rates if self.disk is None else dataclasses.replace(rates, disk_bytes_per_second=self.disk)

    def on_gpu(self, rates: GpuRates) -> GpuRates:
        """These rates of a GPU, or the given one."""
        return rates if self.link is None else dataclasses.replace(rates, link_bytes_per_second=self.link)


@dataclass(frozen=True, slots=True)
class Target:
    """Where it should run. vram_bytes: usable memory of the GPU, None where the CPU computes. capability: of
    that GPU, None if unknown. profile: of this machine, None if it was not measured."""

    ram: Budget
    given: GivenRates
    vram_bytes: int | None = None
    gpu_name: str | None = None
    gpu_rates: GpuRates | None = None
    profile: MachineProfile | None = None
    capability: tuple[int, int] | None = None

    @property
    def last_pytorch(self) -> str | None:
        """For its GPU; None if newer ones are built for it, too."""
        return last_pytorch(self.capability)

    @property
    def machine(self) -> Machine:
        """Its memories."""
        return Machine(self.ram, self.vram_bytes, self.capability)

    def measured_rates(self, model: ModelSize) -> Rates | None:
        """Of this machine's CPU and disk with such weights; None if it was not measured."""
        is_packed = model.config.has_packed_experts
        return None if self.profile is None else self.profile.rates_for(is_packed=is_packed)

    def host_rates(self, model: ModelSize) -> Rates:
        """Of the CPU and the disk: given, else measured, else assumed."""
        return self.given.on_host(self.measured_rates(model) or ASSUMED)


@dataclass(frozen=True, slots=True)
class Chats:
    """The chat that is planned for, in the number types of the CPU and of a GPU."""

    on_cpu: ChatPlan
    on_gpu: ChatPlan

    def changed(self, **changes: Any) -> Chats:
        """The same with other fields of both."""
        return Chats(*(dataclasses.replace(chat, **changes) for chat in (self.on_cpu, self.on_gpu)))


@dataclass(slots=True)
class ContextChoice:
    """What a context of this length leaves: experts in memory, and speed."""

    ctx_size: int
    resident_share: float  #: Share of the text experts that are in fast memory in decode.
    peak_bytes: int
    decode_tok_s: Band


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU. context_size: the longest that fits; page: the largest in the context that was asked for."""

    gpu: GpuModel
    plan: GpuPlan
    speed: Speed
    context_size: int | None
    page: ScannedPage | None


@dataclass(slots=True)
class Report:
    """Plans of one model on one target. start: None where it does not fit, or nothing was measured here.
    solved: what --solve found, and obstacle: what is in the way of more; flags: options that make it fit;
    choices: contexts up to the longest that fits."""

    model: ModelSize
    chats: Chats
    target: Target
    cpu: CpuPlan
    cpu_speed: Speed
    start: Start | None
    gpu: GpuPlan | None
    gpu_speed: Speed | None
    solved: dict[str, str | int | None] | None = None
    obstacle: Obstacle | None = None
    flags: list[str] = field(default_factory=list)
    choices: list[ContextChoice] = field(default_factory=list)

    @property
    def conversation(self) -> ChatPlan:
        """With the GPU if one is asked about, else in RAM."""
        return self.chats.on_cpu if self.gpu is None else self.gpu.chat

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

    def sensitivity(self) -> dict[str, Band]:
        """As `gpu_sensitivity`; empty without a GPU that experts are paged to."""
        gpu, rates = self.gpu, self.target.gpu_rates
        if gpu is None or rates is None or not gpu.fits:
            return {}
        return gpu_sensitivity(self.model, gpu, rates, self.target.host_rates(self.model))


def find_model(options: VramOptions) -> ModelSize:
    """The model of the options, as it is; ModelUnusable where there is none."""
    name = options.model
    if name.lower() in PUBLISHED_NAMES:
        model = published_model(name.lower())
    else:
        # Named as the user named it: nano's directory would mean nothing to them.
        with outlined_model(name) as directory:
            model = dataclasses.replace(read_model(directory), name=name)
    if options.lora:
        from ernie_local.adapters.tables import adapter_counter

        model = dataclasses.replace(model, adapter_numbers=adapter_counter(options.lora, model.config))
    processor = with_max_pixels(model.processor, options.max_pixels_count())
    return dataclasses.replace(model, processor=with_image_tokens(processor, options.image_tokens_count()))


def converse(
    model: ModelSize,
    options: VramOptions,
    images: tuple[ImageReport, ...] | None = None,
    videos: tuple[ImageReport, ...] = (),
) -> Chats:
    """The conversation that the options describe; where they say nothing, what a chat would choose.

    images: None for those of the options. videos: as images, which `images` has already where it is given.

    DoesNotFit for a context beyond the model's, or that images alone fill; ModelUnusable for images where the
    model's files do not say how they are read.
    """
    asked = None if options.context_size is None else parse_count(options.context_size, "context_size")
    model_limit = model.config.text.max_position_embeddings
    context_size = defaults.context_tokens(asked, model_limit)
    if images is None:
        given = list(_measured(options, model, context_size))
        images = (*videos, *(image for image, _ in given), *_zoomed(options, [part for _, part in given]))
    may_shrink = options.kv_dtype == defaults.AUTO
    types = [_number_types(model, options, on_gpu) for on_gpu in (False, True)]
    counts = options.parallel, 1
    chats = Chats(
        *(
            ChatPlan(context_size, *both, images, may_shrink, count)
            for both, count in zip(types, counts, strict=True)
        )
    )
    chats.on_cpu.check_images(model_limit)
    return chats


def _number_types(model: ModelSize, options: VramOptions, on_gpu: bool) -> tuple[str, str]:
    """To compute in, and of the KV cache, as `load` chooses them."""
    is_packed = model.config.quantization is not None
    dtype: str = options.dtype
    if dtype == defaults.AUTO:
        # Only where it decides: finding the size of files takes longer than all else.
        num_bytes = 0 if is_packed or on_gpu else model.plain_weight_bytes
        dtype = defaults.compute_dtype(num_bytes, on_gpu=on_gpu)
    kv_dtype: str = options.kv_dtype
    return dtype, defaults.kv_dtype(dtype, is_packed=is_packed) if kv_dtype == defaults.AUTO else kv_dtype


def _measured(
    options: VramOptions, model: ModelSize, context_size: int
) -> Iterator[tuple[ImageReport, ImageReport]]:
    """The images of --image, with --zoom each beside its largest part; InputUnreadable for a file that is
    none."""
    views = [view for source in options.image for view in _views(source, options)]
    wanted = [WantedImage(name, view.cropped_size, options.detail, model.processor) for name, view in views]
    for (name, view), (processor, notes) in zip(views, settle_details(wanted, context_size), strict=True):
        crop = view.crop if view.is_cropped else None
        image = measure_image(name, view.opened_size, processor, notes, crop)
        yield image, image if options.zoom is None else _largest_part(image, view, processor, options)


def _largest_part(
    image: ImageReport, view: ImageView, processor: ImageProcessorConfig, options: VramOptions
) -> ImageReport:
    """All of an image as the zoom tool gives it: a page of a PDF is drawn anew, and nothing is reduced.

    Smaller parts take less, but for the rounding of their sides.
    """
    if _SIZE.fullmatch(image.name) is not None:
        return image
    from ernie_local.media.open_image import open_part

    whole = view.resized(image.resized_size).box_to_original((0, 0, 1000, 1000))
    part = open_part(image.name, whole, processor.max_pixels, options.password).view
    return measure_image(image.name, part.opened_size, processor, crop=part.crop if part.is_cropped else None)


def _zoomed(options: VramOptions, parts: Sequence[ImageReport]) -> Iterator[ImageReport]:
    """The parts of --zoom, all of the image whose parts may take most."""
    if options.zoom is not None:
        largest = max(parts, key=lambda part: part.tokens)
        for number in range(1, options.zoom + 1):
            yield dataclasses.replace(largest, name=f"{largest.name} (zoom {number})")


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


def processor_of_a_page(options: VramOptions, model: ModelSize, context_size: int) -> ImageProcessorConfig:
    """How closely the model looks at one page of any size."""
    ((processor, _),) = settle_details(
        [WantedImage("a page", _LARGE_PAGE, options.detail, model.processor)], context_size
    )
    return processor


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

    profile, given = stored_profile(), GivenRates.of(options)
    asked = None if options.vram is None else parse_bytes(options.vram, "vram")
    if options.gpu is not None:
        gpu = find_gpu_model(options.gpu)
        vram, rates = asked or gpu.usable_bytes, given.on_gpu(gpu.rates)
        return Target(budget, given, vram, gpu.name, rates, profile, gpu.capability)
    if asked is not None:
        rates = given.on_gpu(UNKNOWN_GPU)
        return Target(budget, given, asked, f"a GPU with {options.vram}", rates, profile)
    local = next((gpu for gpu in installed_gpus() or () if gpu.free_bytes is not None), None)
    if local is None:
        return Target(budget, given, profile=profile)
    known = match_gpu_model(local.name, local.total_bytes)
    rates = UNKNOWN_GPU if known is None else known.rates
    if profile is not None and profile.rates.gpu is not None:
        rates = profile.rates.gpu
    on_gpu = given.on_gpu(rates)
    return Target(budget, given, local.free_bytes, local.name, on_gpu, profile, local.compute_capability)


def report_on(model: ModelSize, chats: Chats, target: Target) -> Report:
    """Plans and speeds."""
    cpu = plan_cpu(model, chats.on_cpu, target.ram)
    share = None if cpu.slots_bytes is None else cpu.resident_share
    rates = target.host_rates(model)
    is_measured = target.profile is not None and target.given == GivenRates()
    speed = cpu_speed(model, chats.on_cpu, share, rates, is_measured=is_measured)
    start = None
    if target.profile is not None and cpu.placement is not None:
        start = predict_start(model, cpu.placement, chats.on_cpu.item_bytes, rates)
    gpu = on_gpu = None
    if target.vram_bytes is not None:
        gpu = plan_gpu(model, chats.on_gpu, target.vram_bytes, target.ram, target.capability)
        assert target.gpu_rates is not None
        on_gpu = gpu_speed(model, gpu, target.gpu_rates, rates)
    return Report(model, chats, target, cpu, speed, start, gpu, on_gpu)


def report_on_gpus(
    model: ModelSize, chat: ChatPlan, budget: Budget, options: VramOptions
) -> Iterator[GpuRow]:
    """Every GPU of the table, in this machine or one with --ram."""
    given, profile = GivenRates.of(options), stored_profile()
    host = Target(budget, given, profile=profile).host_rates(model)
    processor = processor_of_a_page(options, model, chat.context_size)
    # Many have the same memory and abilities.
    solved: dict[tuple[int, tuple[int, int]], tuple[int | None, ScannedPage | None]] = {}
    for gpu in gpu_models():
        machine = Machine(budget, gpu.usable_bytes, gpu.capability)
        kind = gpu.usable_bytes, gpu.capability
        if kind not in solved:
            page: ScannedPage | None = None
            with suppress(ModelUnusable):  # its files do not say how it reads images
                page = solve_image(model, chat, machine, processor).value
            solved[kind] = solve_context(model, chat, machine).value, page
        plan = plan_gpu(model, chat, gpu.usable_bytes, budget, gpu.capability)
        speed = gpu_speed(model, plan, given.on_gpu(gpu.rates), host)
        yield GpuRow(gpu, plan, speed, *solved[kind])
