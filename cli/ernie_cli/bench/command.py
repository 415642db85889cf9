"""The command `ernie-local bench`: its options, and which of its two jobs they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.options import (
    CommonOptions,
    check_is_number,
    complete_gpu,
    context_size_option,
    file_option,
    model_argument,
    option,
    password_option,
    share_option,
    size_option,
)
from ernie_cli.settings import profile_path
from ernie_cli.signals import telling_what_is_kept
from ernie_local.errors import UsageError
from ernie_local.sizes import parse_bytes, parse_count

if TYPE_CHECKING:
    from ernie_cli.bench.result import BenchResult


@dataclass(frozen=True, kw_only=True)
class BenchOptions(CommonOptions):
    """What was said on the command line."""

    model: str | None = model_argument(
        default=None, show_default=False, help="Also measure this model: a directory, hf:org/name, or nano."
    )
    image: str | None = file_option(help="Measure how long MODEL takes for this image.")
    password: str | None = password_option()
    context_size: str | None = context_size_option()
    vram: str | None = size_option(
        help="With MODEL: memory of the GPU, as for chat; also measures the `--misses` rules. With --gpu: "
        "its memory for experts."
    )
    no_save: bool = option(
        "--no-save", default=False, help="Do not replace the stored profile of this machine."
    )
    replay: Path | None = file_option(
        metavar="TRACE",
        help="Measure nothing: show which share of the experts of a chat recorded by `ernie-local chat "
        "--trace TRACE` would be found in how much memory.",
    )
    ram: tuple[str, ...] = size_option(
        default=(),
        help="With MODEL: memory that the process may use, as for chat. With --replay: memory for experts, "
        "repeatable; default: 25, 50, 75 and 100 % of the text experts.",
    )
    gpu: str | None = option(
        metavar="NAME",
        help="With --replay and --vram: predict the time of experts on this GPU, such as rtx3060-12gb.",
        autocompletion=complete_gpu,
    )
    decay: tuple[float, ...] = share_option(
        default=(),
        help="With --replay: use this decay instead of the one that paging chooses; 0 is LRU, 1 is LFU. "
        "Repeatable.",
    )


def bench(options: BenchOptions, result: BenchResult) -> None:
    """Measure this machine, and MODEL on it: disk, memory, kernels, prompts and answers. Takes half a minute.

    The measurements are stored as the machine's profile, from which speed is predicted. With --replay, a
    recorded chat is replayed instead, without its model: our paging, LRU, LFU and Belady's optimum, all with
    the same bytes.
    """
    budgets = [parse_bytes(size, "ram") for size in options.ram]
    if options.context_size is not None:
        parse_count(options.context_size, "context_size")
    gpu_bytes = None if options.vram is None else parse_bytes(options.vram, "vram")
    for decay in options.decay:
        check_is_number("--decay", decay)
    _check_options(options)
    if options.replay is None:
        from ernie_cli.bench.measure import measure

        with telling_what_is_kept(lambda: _what_is_stored(options, result)):
            measure(options, result)
        return
    from ernie_cli.bench.replay import replay_in_ram, replay_on_gpu

    if gpu_bytes is None:
        replay_in_ram(options, budgets, result)
    else:
        replay_on_gpu(options, budgets, gpu_bytes, result)


def _what_is_stored(options: BenchOptions, result: BenchResult) -> str:
    if result.saved is not None:
        return f"the profile is stored as {result.saved}"
    path = profile_path()
    if options.no_save or not path.exists():
        return "nothing was stored: a profile is written when all is measured"
    return f"{path} is as it was: a profile is written when all is measured"


def _check_options(options: BenchOptions) -> None:
    """UsageError for options that contradict each other; costs nothing."""
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
    given = [name for name, value in values.items() if value not in (None, False, ())]

    def named(*names: str, are_given: bool = True) -> str:
        return ", ".join(name for name in names if (name in given) == are_given)

    if options.gpu is not None or (options.replay is not None and options.vram is not None):
        of_gpu = ("--replay", "--gpu", "--vram")
        if lacking := named(*of_gpu, are_given=False):
            raise UsageError(
                f"{named(*of_gpu)} without {lacking}",
                "a prediction needs a recorded chat, the name of a GPU, and its memory for experts",
                "give --replay TRACE --gpu NAME --vram SIZE, or remove --gpu and --vram",
            )
        if options.decay:
            raise UsageError(
                "--decay with --gpu",
                "only our own paging is predicted, which chooses its decay itself",
                "remove one of them",
            )
    if options.replay is not None:
        if wrong := named("MODEL", "--image", "--ctx-size", "--no-save"):
            raise UsageError(
                f"{wrong} with --replay",
                "a replay measures nothing and loads no model",
                f"remove --replay or {wrong}",
            )
        return
    if options.decay:
        raise UsageError(
            "--decay without --replay", "only a replay has a choice of decays", "add --replay TRACE"
        )
    if options.model is None and (wrong := named("--image", "--ctx-size", "--ram", "--vram")):
        raise UsageError(
            f"{wrong} without MODEL",
            "it says how a model is loaded and measured",
            "name a model, such as nano",
        )
    if len(options.ram) > 1:
        raise UsageError(
            f"{len(options.ram)} times --ram for one model",
            "the model is loaded once",
            "run bench once for each limit",
        )
