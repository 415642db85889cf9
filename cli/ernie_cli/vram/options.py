"""Declares the options of `ernie-local vram` and refuses those that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ernie_cli.options import (
    CommonOptions,
    ContextSize,
    DTypeName,
    KVDType,
    Ram,
    Reserve,
    complete_gpu,
    complete_path,
    file_option,
    model_argument,
)
from ernie_local.packing.formats import formats_for, largest_first

if TYPE_CHECKING:
    BitsName = str
    DenseName = str
else:  # typer shows what the table of formats offers
    BitsName = Literal[("16", *(str(one.bits) for one in largest_first(formats_for("estimate"))), "mixed")]
    DenseName = Literal[tuple(one.name for one in largest_first(formats_for("dense")))]
EVERY_GPU = "all"
_PUBLISHED_MODEL = "ernie-4.5-vl-28b-a3b"
_PLOT_SUFFIXES = (".svg", ".png")


def _complete_gpu_or_all(incomplete: str) -> list[str]:
    return [EVERY_GPU, *complete_gpu(incomplete)]


@dataclass(frozen=True, kw_only=True)
class VramOptions(CommonOptions):
    """What was said on the command line; None where it was not."""

    model: Annotated[
        str,
        model_argument(
            f"A directory (config.json is enough), hf:org/name, nano, or {_PUBLISHED_MODEL}, whose sizes are "
            "in the package, so that nothing is downloaded."
        ),
    ] = _PUBLISHED_MODEL
    bits: Annotated[
        BitsName | None,
        typer.Option(
            help="Estimate for experts of this many bits, as `quantize` would make them. Default: MODEL as "
            "it is."
        ),
    ] = None
    dense: Annotated[
        DenseName,
        typer.Option(help="With --bits: format of attention, shared experts, dense layers and head."),
    ] = "w8"
    image: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="FILE|WxH",
            help="An image in the chat, or its size such as 2480x3508. Repeatable.",
            autocompletion=complete_path,
        ),
    ] = ()
    context_size: ContextSize = None
    dtype: Annotated[DTypeName, typer.Option(help="Number type to compute in, as for chat.")] = "auto"
    kv_dtype: KVDType = "auto"
    ram: Ram = None
    reserve: Reserve = None
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A GPU, such as rtx3060-12gb; all: one line for each known GPU.",
            autocompletion=_complete_gpu_or_all,
        ),
    ] = None
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the GPU, instead of what --gpu has.")
    ] = None
    solve: Annotated[
        Literal["bits", "ctx", "experts"] | None,
        typer.Option(
            help="Find the most bits, the longest context, or the number of experts in memory that fit."
        ),
    ] = None
    sessions: Annotated[
        bool,
        typer.Option(
            "--sessions", help="How many full-context sessions --gpus GPUs with --vram each hold at once."
        ),
    ] = False
    gpus: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --sessions: number of GPUs of the server.")
    ] = 1
    rule: Annotated[
        Literal["rental", "ours"],
        typer.Option(
            help="With --sessions. rental: the published rule of a rental page; ours: also our own figure, "
            "with what that rule leaves out."
        ),
    ] = "rental"
    plot: Annotated[
        Path | None, file_option(help_text="Draw the phases as bars, into an .svg or .png file.")
    ] = None


def check_options(options: VramOptions) -> None:
    """UsageError for options that contradict each other; costs nothing."""
    from ernie_local.errors import UsageError
    from ernie_local.sizes import parse_bytes

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
    if options.sessions and options.vram is None:
        raise UsageError(
            "--sessions without --vram",
            "the number of sessions follows from the memory of the GPUs",
            "--sessions --gpus 2 --vram 16GiB --bits 4",
        )
    given = {
        "--gpu": options.gpu,
        "--vram": options.vram,
        "--solve": options.solve,
        "--plot": options.plot,
    }
    if options.sessions:
        _refuse(given, ("--gpu", "--solve", "--plot"), "--sessions", "the rule is about a server of GPUs")
    elif options.gpu == EVERY_GPU:
        _refuse(given, ("--vram", "--solve", "--plot"), f"--gpu {EVERY_GPU}", "it applies to one GPU")


def _refuse(given: Mapping[str, object], names: tuple[str, ...], other: str, why: str) -> None:
    from ernie_local.errors import UsageError

    for name in names:
        if given[name] is not None:
            raise UsageError(f"{name} with {other}", why, f"remove {name} or {other}")
