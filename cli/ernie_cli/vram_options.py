"""The options of `ernie-local vram` as one value: their types, what they say, and which go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ernie_cli.chat_options import DType, KVDType
from ernie_local.errors import UsageError

BitsName = Literal["16", "8", "4", "3", "2", "mixed"]
DenseName = Literal["w8", "w4"]
SolveName = Literal["bits", "ctx", "experts"]
RuleName = Literal["rental", "ours"]
EVERY_GPU = "all"
_PLOT_SUFFIXES = (".svg", ".png")

Model = Annotated[
    str,
    typer.Argument(
        help="A directory (config.json is enough), hf:org/name, nano, or ernie-4.5-vl-28b-a3b, whose sizes "
        "come along, so that nothing is downloaded."
    ),
]
Bits = Annotated[
    BitsName | None,
    typer.Option(help="As `quantize` would make it of a bfloat16 model: bits of experts. Default: as it is."),
]
Dense = Annotated[
    DenseName, typer.Option(help="With --bits: attention, shared experts, dense layers and head.")
]
Image = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|WxH", help="An image, or its size such as 2480x3508. Repeatable."),
]
ContextSize = Annotated[
    str | None, typer.Option("--ctx-size", metavar="N", help="Tokens of the whole chat, such as 32k.")
]
DTypeChoice = Annotated[DType, typer.Option(help="Numbers to compute with, as for chat.")]
KVDTypeChoice = Annotated[KVDType, typer.Option("--kv-dtype", help="Numbers in the KV cache, as for chat.")]
Ram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="RAM for the process, such as 8GiB. Default: what is free, less --reserve."
    ),
]
Reserve = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Of the free RAM, what is left to others. Default: 1GiB.")
]
GpuName = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="A graphics GPU, such as rtx3060-12gb; all: a line a GPU."),
]
Vram = Annotated[
    str | None,
    typer.Option("--vram", metavar="SIZE", help="Memory of a GPU, in place of what --gpu has."),
]
Solve = Annotated[
    SolveName | None,
    typer.Option(help="Find the most bits, the longest context, or the experts in memory that fit."),
]
Sessions = Annotated[
    bool, typer.Option("--sessions", help="Full-context sessions that --gpus GPUs of --vram hold at once.")
]
Gpus = Annotated[int, typer.Option(metavar="N", min=1, help="With --sessions: GPUs of the server.")]
Rule = Annotated[
    RuleName,
    typer.Option(help="With --sessions: a rental page's published rule, or beside it what that leaves out."),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the phases as bars, into an .svg or .png file.")
]


@dataclass(frozen=True, slots=True)
class VramOptions:
    """What was said on the command line; None where it was not."""

    model: str
    bits: BitsName | None
    dense: DenseName
    images: tuple[str, ...]
    context_size: str | None
    dtype: DType
    kv_dtype: KVDType
    ram: str | None
    reserve: str | None
    gpu: str | None
    vram: str | None
    solve: SolveName | None
    sessions: bool
    gpus: int
    rule: RuleName
    plot: Path | None


def check_options(options: VramOptions) -> None:
    """UsageError for options that do not go together; costs nothing."""
    if options.ram is not None and options.reserve is not None:
        raise UsageError(
            f"--reserve {options.reserve} with --ram {options.ram}",
            "the reserve is what is left of the free memory, and --ram says how much to take of it",
            "give one of them",
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
            "one says what the other looks for",
            "give one of them",
        )
    if options.sessions:
        _check_sessions(options)
    if options.gpu == EVERY_GPU:
        for option, given in (("--vram", options.vram), ("--solve", options.solve), ("--plot", options.plot)):
            if given is not None:
                raise UsageError(
                    f"{option} with --gpu {EVERY_GPU}", "it is about one GPU", "name one, or leave it out"
                )


def _check_sessions(options: VramOptions) -> None:
    if options.vram is None:
        raise UsageError(
            "--sessions without --vram",
            "how many sessions fit follows from the memory of the GPUs",
            "--sessions --gpus 2 --vram 16GiB --bits 4",
        )
    for option, given in (("--gpu", options.gpu), ("--solve", options.solve), ("--plot", options.plot)):
        if given is not None:
            raise UsageError(
                f"{option} with --sessions", "the rule is about a server of GPUs", "leave one of them out"
            )
