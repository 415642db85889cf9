"""The command `ernie-local bench`: its options, and which of its two jobs they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_cli.options import CommonOptions, ContextSize, complete_gpu, file_option, model_argument

if TYPE_CHECKING:
    from ernie_cli.bench.result import BenchResult


@dataclass(frozen=True, kw_only=True)
class BenchOptions(CommonOptions):
    """What was said on the command line."""

    model: Annotated[
        str | None,
        model_argument("Also measure this model: a directory, hf:org/name, or nano.", show_default=False),
    ] = None
    image: Annotated[str | None, file_option(help_text="Measure how long MODEL takes for this image.")] = None
    context_size: ContextSize = None
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With MODEL: memory of the GPU, as for chat; also measures the `--misses` rules. "
            "With --gpu: its memory for experts.",
        ),
    ] = None
    no_save: Annotated[
        bool, typer.Option("--no-save", help="Do not replace the stored profile of this machine.")
    ] = False
    replay: Annotated[
        Path | None,
        file_option(
            metavar="TRACE",
            help_text="Measure nothing: show which share of the experts of a chat recorded by `ernie-local "
            "chat --trace TRACE` would be found in how much memory.",
        ),
    ] = None
    ram: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="SIZE",
            help="With MODEL: memory that the process may use, as for chat. With --replay: memory for "
            "experts, repeatable; default: 25, 50, 75 and 100 % of the text experts.",
        ),
    ] = ()
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --replay and --vram: predict the time of experts on this GPU, such as rtx3060-12gb.",
            autocompletion=complete_gpu,
        ),
    ] = None
    decay: Annotated[
        tuple[float, ...],
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="With --replay: use this decay instead of the one that paging chooses; 0 is LRU, 1 is LFU. "
            "Repeatable.",
        ),
    ] = ()


def bench(options: BenchOptions, result: BenchResult) -> None:
    """Measure this machine, and MODEL on it: disk, memory, kernels, prompts and answers. Takes half a minute.

    The measurements are stored as the machine's profile, from which speed is predicted. With --replay, a
    recorded chat is replayed instead, without its model: our paging, LRU, LFU and Belady's optimum, all with
    the same bytes.
    """
    from ernie_cli.chat.request import check_is_number
    from ernie_local.sizes import parse_bytes, parse_count

    budgets = [parse_bytes(size, "ram") for size in options.ram]
    if options.context_size is not None:
        parse_count(options.context_size, "context_size")
    gpu_bytes = None if options.vram is None else parse_bytes(options.vram, "vram")
    for decay in options.decay:
        check_is_number("--decay", decay)
    if options.gpu is not None or (options.replay is not None and gpu_bytes is not None):
        _refuse_half_a_gpu(options)
    if options.replay is None:
        _refuse_for_measuring(options)
        from ernie_cli.bench.measure import measure

        measure(options, result)
        return
    from ernie_cli.bench.replay import replay_in_ram, replay_on_gpu

    _refuse_for_replay(options)
    if gpu_bytes is None:
        replay_in_ram(options, budgets, result)
    else:
        replay_on_gpu(options, budgets, gpu_bytes, result)


def _given(options: BenchOptions, *names: str) -> list[str]:
    """Which of these options were given."""
    values: dict[str, object] = {
        "MODEL": options.model,
        "--image": options.image,
        "--ctx-size": options.context_size,
        "--vram": options.vram,
        "--no-save": options.no_save,
        "--replay": options.replay,
        "--ram": options.ram,
        "--gpu": options.gpu,
    }
    return [name for name in names if values[name] not in (None, False, ())]


def _refuse_half_a_gpu(options: BenchOptions) -> None:
    from ernie_local.errors import UsageError

    names = ("--replay", "--gpu", "--vram")
    given = _given(options, *names)
    lacking = [name for name in names if name not in given]
    if lacking:
        raise UsageError(
            f"{', '.join(given)} without {', '.join(lacking)}",
            "a prediction needs a recorded chat, the name of a GPU, and its memory for experts",
            "give --replay TRACE --gpu NAME --vram SIZE, or remove --gpu and --vram",
        )
    if options.decay:
        raise UsageError(
            "--decay with --gpu",
            "only our own paging is predicted, which chooses its decay itself",
            "remove one of them",
        )


def _refuse_for_replay(options: BenchOptions) -> None:
    from ernie_local.errors import UsageError

    wrong = _given(options, "MODEL", "--image", "--ctx-size", "--no-save")
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} with --replay",
            "a replay measures nothing and loads no model",
            f"remove --replay or {', '.join(wrong)}",
        )


def _refuse_for_measuring(options: BenchOptions) -> None:
    from ernie_local.errors import UsageError

    wrong = _given(options, "--image", "--ctx-size", "--ram", "--vram")
    if options.decay:
        raise UsageError(
            "--decay without --replay", "only a replay has a choice of decays", "add --replay TRACE"
        )
    if options.model is None and wrong:
        raise UsageError(
            f"{', '.join(wrong)} without MODEL",
            "it says how a model is loaded and measured",
            "name a model, such as nano",
        )
    if len(options.ram) > 1:
        raise UsageError(
            f"{len(options.ram)} times --ram for one model",
            "the model is loaded once",
            "run bench once for each limit",
        )
