"""The command `ernie-local vram`: says whether a model fits, what goes where, and how fast it will be.

Reads headers or config.json only, and imports no torch, not even when it runs, unless adapters are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_cli.console import Console
from ernie_cli.options import (
    CommonOptions,
    DTypeName,
    ImageOptions,
    KVDTypeName,
    complete_gpu,
    context_size_option,
    file_option,
    fps_option,
    frames_option,
    kv_dtype_option,
    lora_option,
    model_argument,
    option,
    password_option,
    ram_option,
    reserve_option,
    size_option,
)
from ernie_local.errors import UsageError
from ernie_local.packing.formats import formats_by_bits, formats_for, largest_first
from ernie_local.sizes import parse_bytes

if TYPE_CHECKING:
    from ernie_cli.vram.result import VramResult

    BitsName = str
    DenseName = str
else:  # typer shows what the table of formats offers
    BitsName = Literal[("16", *formats_by_bits(), "mixed")]
    DenseName = Literal[tuple(one.name for one in largest_first(formats_for("dense")))]
EVERY_GPU = "all"
_DEFAULT_MODEL = "ernie-4.5-vl-28b-a3b"
rate_option = partial(option, metavar="X", min=0.001, max=100_000)
_PLOT_SUFFIXES = (".svg", ".png")


def _complete_gpu_or_all(incomplete: str) -> list[str]:
    return [EVERY_GPU, *complete_gpu(incomplete)]


@dataclass(frozen=True, kw_only=True)
class VramOptions(ImageOptions, CommonOptions):
    """What was said on the command line; None where it was not."""

    model: str = model_argument(
        default=_DEFAULT_MODEL,
        help=f"A directory (config.json is enough), hf:org/name, nano, {_DEFAULT_MODEL}, or "
        "ernie-4.5-vl-424b-a47b; the sizes of the last two are in the package, and nothing is downloaded.",
    )
    bits: BitsName | None = option(
        help="Estimate for experts of this many bits, as `quantize` would make them. Default: MODEL as it is."
    )
    dense: DenseName = option(
        default="w8", help="With --bits: format of attention, shared experts, dense layers and head."
    )
    image: tuple[str, ...] = file_option(
        default=(),
        metavar="FILE|WxH",
        help="An image in the chat, or its size such as 2480x3508. Repeatable.",
    )
    video: tuple[str, ...] = file_option(
        default=(),
        metavar="FILE|LENGTH@WxH",
        help="A video in the chat, or its length and size such as 60s@1920x1080 or 2h@1280x720. Repeatable.",
    )
    fps: float | None = fps_option(help="Frames of each second of a video, as for chat.")
    frames: int | None = frames_option(help="So many frames of each video, as for chat.")
    zoom: int | None = option(
        metavar="ROUNDS",
        min=1,
        max=32,
        help="With --image: the model zooms in so often, as with --zoom of chat. Each part counts as all of "
        "the image.",
    )
    password: str | None = password_option()
    context_size: str | None = context_size_option()
    parallel: int = option(
        default=1,
        metavar="N",
        min=1,
        max=16,
        help="Chats that are answered at once on the CPU, each with a KV cache of its own.",
    )
    dtype: DTypeName = option(default="auto", help="Number type to compute in, as for chat.")
    kv_dtype: KVDTypeName = kv_dtype_option()
    ram: str | None = ram_option()
    reserve: str | None = reserve_option()
    lora: tuple[str, ...] = lora_option(
        help="A LoRA adapter that is loaded beside the weights, as for chat. Repeatable."
    )
    gpu: str | None = option(
        metavar="NAME",
        help="A GPU, such as rtx3060-12gb; all: one line for each known GPU.",
        autocompletion=_complete_gpu_or_all,
    )
    vram: str | None = size_option(help="Memory of the GPU, instead of what --gpu has.")
    solve: Literal["ctx", "bits", "experts", "image"] | None = option(
        help="Find what fits with all else as given: the longest context, the most bits, the number of "
        "experts in the fastest memory, or the largest page of the shape of A4. Says which number is in the "
        "way of more."
    )
    cpu_rate: float | None = rate_option(
        help="GB/s at which the CPU reads experts that it computes, instead of what `bench` measured or "
        "25, which is assumed."
    )
    link_rate: float | None = rate_option(help="GB/s of copies to the GPU, instead of what its bus suggests.")
    disk_rate: float | None = rate_option(
        help="GB/s of reads from the disk, instead of what `bench` measured or 1.5, which is assumed."
    )
    sessions: bool = option(
        "--sessions",
        default=False,
        help="How many full-context sessions --gpus GPUs with --vram each hold at once.",
    )
    gpus: int = option(
        default=1, metavar="N", min=1, max=10_000, help="With --sessions: number of GPUs of the server."
    )
    rule: Literal["rental", "ours"] = option(
        default="rental",
        help="With --sessions. rental: the published rule of a rental page; ours: also our own figure, with "
        "what that rule leaves out.",
    )
    plot: Path | None = file_option(help="Draw the phases as bars, into an .svg or .png file.")


def vram(options: VramOptions, result: VramResult) -> None:
    """Estimate memory and speed before loading a model.

    For the free RAM and the GPU of this machine, or for --ram, --gpu and --vram; for a chat that fills
    --ctx-size, images first. Exit code 3 if it does not fit, with the options that make it fit.
    """
    from ernie_cli.vram import report as reports
    from ernie_cli.vram import solving, text
    from ernie_cli.vram.videos import measured_videos, video_lines, zoom_lines
    from ernie_local.planner.model_size import with_bits

    _check_options(options)
    console = Console(quiet=options.as_json)
    if options.sessions and options.rule == "rental":  # this rule holds for one model only
        console.show(text.session_lines(result.set_sessions(options)))
        return
    with console.telling_warnings(), console.working("reading headers"):
        plain = reports.find_model(options)
    model = with_bits(plain, options.bits, options.dense)
    videos = measured_videos(options, model)
    chats = reports.converse(model, options, videos=tuple(video.as_image() for video in videos))
    has_gpu = options.sessions or options.gpu is not None or options.vram is not None
    result.set_model(model, chat := chats.on_gpu if has_gpu else chats.on_cpu)
    console.show(video_lines(result.set_videos(videos)))
    zoom = result.set_zoom(model, chat, options.zoom)
    if options.sessions:
        sessions = result.set_sessions(options, (model, chats.on_gpu))
        console.show([*zoom_lines(zoom), *text.session_lines(sessions)])
        return
    budget = reports.ram_budget(options)
    if options.gpu == EVERY_GPU:
        result.set_gpus(gpus := list(reports.report_on_gpus(model, chats.on_gpu, budget, options)))
        lines = text.known_gpu_lines(gpus, chats.on_gpu, is_plain=model.config.quantization is None)
        console.show([*zoom_lines(zoom), *text.model_lines(model), *lines])
        return
    target = reports.find_target(options, budget)
    if options.parallel > 1 and target.vram_bytes is not None:
        raise UsageError(
            f"--parallel {options.parallel} on a machine with a GPU",
            "several chats at once are planned for the CPU alone",
            "remove --parallel, or ask on a machine without a GPU",
        )
    if target.vram_bytes is None and options.link_rate is not None:
        raise UsageError(
            f"--link-rate {options.link_rate:g} without a GPU",
            "it is the rate of copies to a GPU, and this machine has none that is known",
            f"--gpu NAME --link-rate {options.link_rate:g}",
        )
    report = reports.report_on(model, chats, target)
    if options.solve is not None:
        report = solving.solve(report, options, plain)
    if not report.fits:
        report.flags = solving.flags_that_fit(report, options, plain)
    result.set_report(report)
    if options.plot is not None:
        text.draw(report.memory, model.name, options.plot)
        console.note(f"drawn as {options.plot}")
    console.show([*zoom_lines(zoom), *text.report_lines(report)])
    if not report.fits:
        raise solving.does_not_fit(report)


def _check_options(options: VramOptions) -> None:
    """UsageError for options that contradict each other; costs nothing."""
    if options.ram not in (None, "auto"):
        parse_bytes(options.ram, "ram")
    if options.ram is not None and options.reserve is not None:
        raise UsageError(
            f"--reserve {options.reserve} with --ram {options.ram}",
            "--reserve is subtracted from the free memory, and --ram is used instead of the free memory",
            "use one of them",
        )
    if options.plot is not None and options.plot.suffix not in _PLOT_SUFFIXES:
        raise UsageError(
            f"--plot {options.plot} ends in none of {', '.join(_PLOT_SUFFIXES)}",
            "the end of the name says what kind of file it is",
            "--plot memory.svg",
        )
    if options.solve == "bits" and options.bits is not None:
        raise UsageError(
            f"--solve bits with --bits {options.bits}",
            "--solve bits looks for the bits that --bits sets",
            "use one of them",
        )
    if options.zoom is not None and not options.image:
        raise UsageError(
            f"--zoom {options.zoom} without an image",
            "it prices parts of an image that the model looks at more closely",
            f"--image 2480x3508 --zoom {options.zoom}",
        )
    if options.sessions and options.vram is None:
        raise UsageError(
            "--sessions without --vram",
            "the number of sessions follows from the memory of the GPUs",
            "--sessions --gpus 2 --vram 16GiB --bits 4",
        )
    others = {"--gpu": options.gpu, "--vram": options.vram, "--sessions": options.sessions or None}
    if options.parallel > 1 and (other := next((name for name in others if others[name] is not None), None)):
        raise UsageError(
            f"--parallel {options.parallel} with {other}",
            "several chats at once are planned for the CPU alone",
            f"remove --parallel or {other}",
        )
    given: dict[str, object] = {"--gpu": options.gpu, "--vram": options.vram, "--solve": options.solve}
    given |= {"--plot": options.plot, "--image": options.image or None, "--video": options.video or None}
    if options.sessions:
        priced = ("--image", "--video") if options.rule == "rental" else ()
        wrong, other = ("--gpu", "--solve", "--plot", *priced), "--sessions"
        why = f"the {options.rule} rule is about a server of GPUs" + ", whatever is asked" * bool(priced)
    elif options.gpu == EVERY_GPU:
        wrong, other, why = ("--vram", "--solve", "--plot"), f"--gpu {EVERY_GPU}", "it applies to one GPU"
    else:
        return
    for name in wrong:
        if given[name] is not None:
            raise UsageError(f"{name} with {other}", why, f"remove {name} or {other}")
