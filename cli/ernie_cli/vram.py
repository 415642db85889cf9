"""The command `ernie-local vram`: does a model fit, what goes where, how fast will it be, what makes it fit.

Reads headers or config.json only, and needs no torch. Imports typer and nothing heavy, not even when it runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_cli.invocation import Invocation
from ernie_cli.stored_profile import stored_profile
from ernie_cli.vram_options import (
    EVERY_GPU,
    Bits,
    ContextSize,
    Dense,
    DTypeChoice,
    GpuName,
    Gpus,
    Image,
    KVDTypeChoice,
    Model,
    Plot,
    Ram,
    Reserve,
    Rule,
    Sessions,
    Solve,
    Vram,
    VramOptions,
    check_options,
)

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_cli.vram_report import Report, Target
    from ernie_local.planner.ram import Budget


def vram(
    context: typer.Context,
    model: Model = "ernie-4.5-vl-28b-a3b",
    bits: Bits = None,
    dense: Dense = "w8",
    image: Image = None,
    context_size: ContextSize = None,
    dtype: DTypeChoice = "auto",
    kv_dtype: KVDTypeChoice = "auto",
    ram: Ram = None,
    reserve: Reserve = None,
    gpu: GpuName = None,
    vram_size: Vram = None,
    solve: Solve = None,
    sessions: Sessions = False,
    gpus: Gpus = 1,
    rule: Rule = "rental",
    plot: Plot = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/vram-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Reckon what a model takes of memory, and how fast it will be, before anything is loaded.

    For this machine's free RAM and its GPU, or for what --ram, --gpu and --vram say; for a chat that fills
    --ctx-size, images first. Exit code 3 where it does not fit, with the options that make it fit.
    """
    del debug  # Acted on by main, which is where errors arrive.
    options = VramOptions(
        model, bits, dense, tuple(image or ()), context_size, dtype, kv_dtype, ram, reserve, gpu, vram_size,
        solve, sessions, gpus, rule, plot,
    )  # fmt: skip
    invocation = context.ensure_object(Invocation)
    if as_json:
        from ernie_cli import vram_json

        invocation.json_object = vram_json.empty_object()
    check_options(options)
    if options.sessions and options.rule == "rental":
        _tell_published(options, invocation)
        return
    _run(options, invocation)


def _run(options: VramOptions, invocation: Invocation) -> None:
    from ernie_cli import vram_json, vram_text
    from ernie_cli.console import Console
    from ernie_cli.vram_model import as_quantized, converse, find_model

    console = Console(quiet=invocation.json_object is not None)
    plain = find_model(options.model)
    model = as_quantized(plain, options.bits, options.dense)
    conversation = converse(model, options)
    if invocation.json_object is not None:
        invocation.json_object |= vram_json.model_fields(model, conversation)
    budget = _budget(options)
    if options.sessions:
        from ernie_cli.vram_sessions import tell_sessions

        tell_sessions(model, conversation, options, console, invocation.json_object)
        return
    if options.gpu == EVERY_GPU:
        from ernie_cli.vram_report import report_on_gpus

        gpus = list(report_on_gpus(model, conversation, budget))
        if invocation.json_object is not None:
            invocation.json_object["gpus"] = vram_json.gpu_list(gpus)
            return
        for line in (*vram_text.model_lines(model), *vram_text.gpu_lines(gpus)):
            console.answer(line + "\n")
        return
    from ernie_cli import vram_report

    report = vram_report.report_on(model, conversation, _target(options, budget))
    if options.solve is not None:
        report = vram_report.solve(report, options, plain)
    if not report.fits:
        report.flags = vram_report.flags_that_fit(report, options, plain)
    _tell(report, options, console, invocation)
    if not report.fits:
        raise _does_not_fit(report)


def _budget(options: VramOptions) -> Budget:
    from ernie_local.planner.fit import DEFAULT_RESERVE
    from ernie_local.planner.free_memory import free_memory, process_memory
    from ernie_local.planner.ram import Budget
    from ernie_local.sizes import parse_bytes

    if options.ram is not None and options.ram != "auto":
        return Budget(parse_bytes(options.ram, "--ram"))
    reserve = DEFAULT_RESERVE if options.reserve is None else parse_bytes(options.reserve, "--reserve")
    # What this command takes is free again when the model is loaded.
    return Budget(None, free_memory() + process_memory(), reserve)


def _target(options: VramOptions, budget: Budget) -> Target:
    """The GPU that was named, else this machine's, else none."""
    from ernie_cli.vram_report import Target
    from ernie_local.machine.hardware import installed_gpus
    from ernie_local.planner.gpus import UNKNOWN_GPU, find_gpu_model, match_gpu_model
    from ernie_local.sizes import parse_bytes

    profile = stored_profile()
    asked = None if options.vram is None else parse_bytes(options.vram, "--vram")
    if options.gpu is not None:
        gpu = find_gpu_model(options.gpu)
        return Target(budget, asked or gpu.usable_bytes, gpu.name, gpu.rates(), profile)
    if asked is not None:
        return Target(budget, asked, f"a GPU with {options.vram}", UNKNOWN_GPU, profile)
    local = next((gpu for gpu in installed_gpus() or () if gpu.free_bytes is not None), None)
    if local is None:
        return Target(budget, profile=profile)
    known = match_gpu_model(local.name, local.total_bytes)
    rates = UNKNOWN_GPU if known is None else known.rates()
    if profile is not None and profile.rates.gpu is not None:
        rates = profile.rates.gpu
    return Target(budget, local.free_bytes, local.name, rates, profile)


def _tell(report: Report, options: VramOptions, console: Console, invocation: Invocation) -> None:
    from ernie_cli import vram_json, vram_text

    memory = report.cpu.memory if report.gpu is None else report.gpu.vram
    if options.plot is not None:
        from ernie_cli.vram_plot import draw

        draw(memory, report.model.name, options.plot)
        console.note(f"drawn as {options.plot}")
    if invocation.json_object is not None:
        invocation.json_object |= vram_json.model_fields(report.model, report.conversation)
        invocation.json_object |= vram_json.report_fields(report)
        return
    kv_bytes = report.conversation.kv_size(report.model.config.text).bytes_per_token
    lines = list(vram_text.model_lines(report.model))
    lines += [vram_text.image_line(image, report.model, kv_bytes) for image in report.conversation.images]
    lines += ["", *vram_text.memory_lines(memory)]
    if report.gpu is not None:
        lines += ["", *vram_text.memory_lines(report.gpu.ram)]
    if sys.stdout.isatty():
        lines += ["", *vram_text.bar_lines(memory)]
    lines += ["", *vram_text.verdict_lines(report)]
    if report.solved is not None:
        lines += [f"solved: {name} {value}" for name, value in report.solved.items()]
    lines += [f"make it fit: {flag}" for flag in report.flags]
    for line in lines:
        console.answer(line + "\n")


def _does_not_fit(report: Report) -> Exception:
    from ernie_local.errors import DoesNotFit
    from ernie_local.sizes import format_bytes

    gpu = report.gpu
    if gpu is None:
        memory, least, place = report.cpu.memory, report.cpu.least_bytes, "of RAM"
    elif gpu.tier == "needs ram":
        memory, least, place = gpu.ram, gpu.host_bytes, "of RAM beside the GPU"
    else:
        memory, least, place = gpu.vram, gpu.least_bytes, f"on {report.target.gpu_name}"
    return DoesNotFit(
        f"the model needs {format_bytes(least)} {place} at least, "
        f"{format_bytes(memory.limit_bytes or 0)} may be taken",
        "dense weights, the KV cache, room to compute in and the experts of one token have to be there",
        " or ".join(report.flags),
    )


def _tell_published(options: VramOptions, invocation: Invocation) -> None:
    from ernie_cli.console import Console
    from ernie_cli.vram_sessions import published_fields

    fields = published_fields(options)
    if invocation.json_object is not None:
        invocation.json_object["sessions"] = fields
        return
    Console().answer(f"{fields['max_concurrency']:.3f} sessions of {fields['tokens']:,} tokens at once\n")
