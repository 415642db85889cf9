"""The command `ernie-local vram`: says whether a model fits, what goes where, and how fast it will be.

Reads headers or config.json only, and imports no torch, not even when it runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ernie_cli.vram.options import EVERY_GPU, VramOptions, check_options

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_cli.vram.report import Report, Target
    from ernie_cli.vram.result import VramResult
    from ernie_local.planner.ram import Budget


def vram(options: VramOptions, result: VramResult) -> None:
    """Estimate memory and speed before loading a model.

    For the free RAM and the GPU of this machine, or for --ram, --gpu and --vram; for a chat that fills
    --ctx-size, images first. Exit code 3 if it does not fit, with the options that make it fit.
    """
    from ernie_cli.console import Console
    from ernie_cli.vram import report as reports
    from ernie_cli.vram import text
    from ernie_cli.vram.model import as_quantized, converse, find_model

    check_options(options)
    console = Console(quiet=options.as_json)
    if options.sessions:
        _sessions(options, console, result)
        return
    plain = find_model(options.model)
    model = as_quantized(plain, options.bits, options.dense)
    conversation = converse(model, options)
    result.set_model(model, conversation)
    budget = _budget(options)
    if options.gpu == EVERY_GPU:
        gpus = list(reports.report_on_gpus(model, conversation, budget))
        result.set_gpus(gpus)
        if not options.as_json:
            for line in (*text.model_lines(model), *text.gpu_lines(gpus)):
                console.answer(line + "\n")
        return
    report = reports.report_on(model, conversation, _target(options, budget))
    if options.solve is not None:
        report = reports.solve(report, options, plain)
    if not report.fits:
        report.flags = reports.flags_that_fit(report, options, plain)
    result.set_report(report)
    _tell(report, options, console)
    if not report.fits:
        raise _does_not_fit(report)


def _sessions(options: VramOptions, console: Console, result: VramResult) -> None:
    from ernie_cli.vram.model import as_quantized, converse, find_model
    from ernie_cli.vram.sessions import our_sessions_object, published_sessions_object, tell_sessions

    sessions = published_sessions_object(options)
    if options.rule == "ours":
        model = as_quantized(find_model(options.model), options.bits, options.dense)
        conversation = converse(model, options)
        result.set_model(model, conversation)
        sessions.ours = our_sessions_object(model, conversation, options)
    result.sessions = sessions
    if not options.as_json:
        tell_sessions(sessions, console)


def _budget(options: VramOptions) -> Budget:
    from ernie_local.planner.fit import DEFAULT_RESERVE
    from ernie_local.planner.free_memory import free_memory, process_memory
    from ernie_local.planner.ram import Budget
    from ernie_local.sizes import parse_bytes

    if options.ram is not None and options.ram != "auto":
        return Budget(parse_bytes(options.ram, "ram"))
    reserve = DEFAULT_RESERVE if options.reserve is None else parse_bytes(options.reserve, "reserve")
    # What this command uses is free again when the model is loaded.
    return Budget(None, free_memory() + process_memory(), reserve)


def _target(options: VramOptions, budget: Budget) -> Target:
    """The GPU that was named, else this machine's, else none."""
    from ernie_cli.settings import stored_profile
    from ernie_cli.vram.report import Target
    from ernie_local.machine.hardware import installed_gpus
    from ernie_local.planner.gpus import UNKNOWN_GPU, find_gpu_model, match_gpu_model
    from ernie_local.sizes import parse_bytes

    profile = stored_profile()
    asked = None if options.vram is None else parse_bytes(options.vram, "vram")
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


def _tell(report: Report, options: VramOptions, console: Console) -> None:
    from ernie_cli.vram import text

    memory = report.cpu.memory if report.gpu is None else report.gpu.vram
    if options.plot is not None:
        text.draw(memory, report.model.name, options.plot)
        console.note(f"drawn as {options.plot}")
    if options.as_json:
        return
    kv_bytes = report.conversation.kv_size(report.model.config.text).bytes_per_token
    lines = list(text.model_lines(report.model))
    lines += [text.priced_image_line(image, report.model, kv_bytes) for image in report.conversation.images]
    lines += ["", *text.memory_lines(memory)]
    if report.gpu is not None:
        lines += ["", *text.memory_lines(report.gpu.ram)]
    if sys.stdout.isatty():
        lines += ["", *text.bar_lines(memory)]
    lines += ["", *text.verdict_lines(report)]
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
        memory, least, place = gpu.ram, gpu.host_bytes, "of RAM besides the GPU"
    else:
        memory, least, place = gpu.vram, gpu.least_bytes, f"on {report.target.gpu_name}"
    return DoesNotFit(
        f"the model needs at least {format_bytes(least)} {place}; "
        f"{format_bytes(memory.limit_bytes or 0)} is available",
        "dense weights, the KV cache, workspace and the experts of one token must fit",
        " or ".join(report.flags),
    )
