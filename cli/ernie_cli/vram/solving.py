"""Answers `vram --solve`, and finds options that make a model fit: reports on other settings.

What is searched for and how is the planner's (`planner/solve.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ernie_cli.vram.command import VramOptions
from ernie_cli.vram.report import ContextChoice, Report, converse, processor_of_a_page, report_on
from ernie_local.defaults import ANSWER_TOKENS
from ernie_local.errors import DoesNotFit
from ernie_local.planner.model_size import BITS_BEST_FIRST, ModelSize, with_bits
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget
from ernie_local.planner.solve import (
    Obstacle,
    ScannedPage,
    solve_bits,
    solve_context,
    solve_experts,
    solve_image,
)
from ernie_local.sizes import MIB, format_bytes

_STEP = 64 << 20  # suggested limits are multiples of it


def solve(report: Report, options: VramOptions, plain: ModelSize) -> Report:
    """The report on the largest setting that fits, and that setting; the given report where none fits.

    plain: the model before --bits.
    """
    if options.solve is None:
        return report
    found: Report | None = None
    value: dict[str, str | int | None]
    obstacle: Obstacle | None
    model, chat, machine = report.model, report.conversation, report.target.machine
    if options.solve == "experts":
        experts = solve_experts(model, chat, machine)
        resident = (0, 0) if experts.value is None else (experts.value.per_layer, experts.value.of)
        found, obstacle = report, experts.obstacle
        value = {"experts_per_layer": resident[0], "of": resident[1]}
    elif options.solve == "ctx":
        context = solve_context(model, chat, machine)
        if context.value is not None:
            found = _with_chats(report, context_size=context.value)
            found.choices = _choices_up_to(found)
        value, obstacle = {"ctx_size": context.value}, context.obstacle
    elif options.solve == "image":
        page = solve_image(model, chat, machine, processor_of_a_page(options, model, chat.context_size))
        if page.value is not None:
            found = _with_chats(report, images=(*chat.images, page.value.image))
        value, obstacle = _page_value(page.value), page.obstacle
    else:
        bits = solve_bits(plain, lambda one: _chat_on(report, one, options), machine, options.dense)
        if bits.value is not None:
            found = _with_bits(report, bits.value, options, plain)
        value, obstacle = {"bits": bits.value}, bits.obstacle
    found = found or report
    found.solved, found.obstacle = value, obstacle
    return found


def _page_value(page: ScannedPage | None) -> dict[str, str | int | None]:
    if page is None:
        return {"a4_dpi": None}
    width, height = page.image.original_size
    return {"a4_dpi": page.dpi, "width": width, "height": height, "image_tokens": page.image.tokens}


def _chat_on(report: Report, model: ModelSize, options: VramOptions) -> ChatPlan:
    chats = converse(model, options, report.conversation.images)
    return chats.on_cpu if report.gpu is None else chats.on_gpu


def _with_chats(report: Report, **changes: Any) -> Report:
    return report_on(report.model, report.chats.changed(**changes), report.target)


def _choices_up_to(longest: Report) -> list[ContextChoice]:
    """Contexts, each twice as long as the one before, up to that of `longest`."""
    most, least = longest.conversation.context_size, longest.conversation.image_tokens + ANSWER_TOKENS
    sizes = [1024 << step for step in range(2, 40) if least <= 1024 << step < most]
    reports = [*(_with_chats(longest, context_size=size) for size in sizes), longest]
    return [
        ContextChoice(
            one.conversation.context_size,
            one.resident_share,
            one.memory.peak.best,
            (one.cpu_speed if one.gpu_speed is None else one.gpu_speed).decode,
        )
        for one in reports
    ]


def _with_bits(report: Report, bits: str, options: VramOptions, plain: ModelSize) -> Report:
    model = with_bits(plain, bits, options.dense)
    return report_on(model, converse(model, options, report.conversation.images), report.target)


def flags_that_fit(report: Report, options: VramOptions, plain: ModelSize) -> list[str]:
    """Options, each of which alone makes it fit, the mildest first."""
    flags: list[str] = []
    longest = solve_context(report.model, report.conversation, report.target.machine).value
    if longest is not None and longest < report.conversation.context_size:
        flags.append(f"--ctx-size {longest // 1024}k")
    if plain.config.quantization is None:
        tried = BITS_BEST_FIRST[BITS_BEST_FIRST.index(options.bits or "16") + 1 :]
        enough = next((bits for bits in tried if _with_bits(report, bits, options, plain).fits), None)
        if enough is not None:
            flags.append(f"--bits {enough}")
    if report.gpu is None:
        flags += _ram_flags(report.target.ram, report.cpu.least_bytes)
    elif report.gpu.tier == "needs ram":
        flags += _ram_flags(report.target.ram, report.gpu.host_least_bytes)
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
        memory, least, place = gpu.ram, gpu.host_least_bytes, "of RAM besides the GPU"
    else:
        memory, least, place = gpu.vram, gpu.least_bytes, f"on {report.target.gpu_name}"
    return DoesNotFit(
        f"the model needs at least {format_bytes(least)} {place}; "
        f"{format_bytes(memory.limit_bytes or 0)} is available",
        "dense weights, the KV cache, workspace and the experts of one token must fit",
        " or ".join(report.flags),
    )
