"""The command `ernie-local bench`: its options, and which of its two works they ask for.

Imports typer and nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ernie_cli.invocation import Invocation


def bench(  # long: each option of the command is a parameter
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(show_default=False, help="Measure this model too: a directory, hf:org/name, or nano."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="FILE", help="Measure how long MODEL takes for this image.")
    ] = None,
    ctx_size: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens that MODEL is loaded for, such as 32k.")
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With MODEL: run it on the GPU in this much of its memory, and measure the --misses rules. "
            "With --gpu: its memory for experts.",
        ),
    ] = None,
    no_save: Annotated[
        bool, typer.Option("--no-save", help="Leave the stored profile of this machine as it is.")
    ] = False,
    trace_path: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            metavar="TRACE",
            help="Measure nothing: replay what `ernie-local chat --trace TRACE` has written, which share of "
            "experts would be found in how much memory.",
        ),
    ] = None,
    ram: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="With MODEL: memory that the process may have, as for chat. With --replay: memory for "
            "experts, repeatable, by default 25 to 100 % of text experts.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --replay and --vram: predict what experts would take on this GPU, such as "
            "rtx3060-12gb.",
        ),
    ] = None,
    decay: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="With --replay: a fixed decay in place of the one that paging finds itself: 0 is LRU, 1 is "
            "LFU. Repeatable.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/bench-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Measure this machine, and MODEL on it: disk, memory, kernels, prompts and answers; half a minute.

    What was measured is stored as the machine's profile, from which speed is predicted. With --replay a
    recorded chat is gone through instead, without its model: our paging as it would run, beside LRU, LFU
    and Belady's optimum with the same bytes.
    """
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import bench_gpu, bench_json, bench_replay
    from ernie_cli.chat_checks import check_is_number
    from ernie_local.sizes import parse_bytes, parse_count

    if as_json:
        invocation.json_object = bench_json.empty_object()
    budgets = [parse_bytes(size, "--ram") for size in ram or ()]
    if ctx_size is not None:
        parse_count(ctx_size, "--ctx-size")
    gpu_bytes = None if vram is None else parse_bytes(vram, "--vram")
    for one in decay or ():
        check_is_number("--decay", one)
    of_model = {
        "--image": image is not None,
        "--ctx-size": ctx_size is not None,
        "--ram": bool(ram),
        "--vram": vram is not None,
    }
    if gpu is not None or (trace_path is not None and gpu_bytes is not None):
        _refuse_half_a_gpu(trace_path, gpu, gpu_bytes, has_decay=bool(decay))
    if trace_path is not None:
        del of_model["--vram"], of_model["--ram"]
        _refuse_beside_replay({"MODEL": model is not None, **of_model, "--no-save": no_save})
    else:
        _refuse_beside_measuring(of_model, model, num_limits=len(budgets), has_decay=bool(decay))
    if trace_path is not None and gpu is not None and gpu_bytes is not None:
        bench_gpu.run(trace_path, gpu, gpu_bytes, budgets, invocation)
        return
    if trace_path is not None:
        bench_replay.run(trace_path, budgets, decay or (None,), invocation)
        return
    from ernie_cli import bench_measure

    options = bench_measure.MeasureOptions(model, image, ctx_size, ram[0] if ram else None, vram, not no_save)
    bench_measure.run(options, invocation)


def _refuse_half_a_gpu(
    trace_path: Path | None, gpu: str | None, gpu_bytes: int | None, *, has_decay: bool
) -> None:
    from ernie_local.errors import UsageError

    options = {"--replay": trace_path, "--gpu": gpu, "--vram": gpu_bytes}
    lacking = [name for name, value in options.items() if value is None]
    if lacking:
        given = [name for name in options if name not in lacking]
        raise UsageError(
            f"{', '.join(given)} given without {', '.join(lacking)}",
            "a GPU is predicted from a recorded chat, its name, and its memory for experts",
            "give --replay TRACE --gpu NAME --vram SIZE, or leave the GPU out",
        )
    if has_decay:
        raise UsageError(
            "--decay given with --gpu",
            "only our own paging is predicted, which finds its decay itself",
            "leave one of them out",
        )


def _refuse_beside_replay(given: Mapping[str, bool]) -> None:
    """given: by the name of an option, whether it was."""
    from ernie_local.errors import UsageError

    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} given with --replay",
            "a replay measures nothing and loads no model",
            "leave one of them out",
        )


def _refuse_beside_measuring(
    of_model: Mapping[str, bool], model: str | None, *, num_limits: int, has_decay: bool
) -> None:
    """of_model: by the name of an option that only a model gives a meaning, whether it was given."""
    from ernie_local.errors import UsageError

    wrong = [name for name, is_given in of_model.items() if is_given]
    if has_decay:
        raise UsageError(
            "--decay given without --replay",
            "only a replay has a choice of decays",
            "add --replay TRACE, or leave it out",
        )
    if model is None and wrong:
        raise UsageError(
            f"{', '.join(wrong)} given without MODEL",
            "it says how a model is loaded and measured",
            "name a model, such as nano, or leave it out",
        )
    if num_limits > 1:
        raise UsageError(
            f"{num_limits} limits by --ram for one model",
            "it is loaded once",
            "run bench once for each limit",
        )
