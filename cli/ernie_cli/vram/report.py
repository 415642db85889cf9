"""Asks the planner for what `ernie-local vram` shows: plans, speeds, and the options that make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ernie_cli.vram.model import EXPERT_FORMATS, as_quantized
from ernie_cli.vram.options import BitsName, VramOptions

if TYPE_CHECKING:
    from ernie_local.planner.conversation import ChatPlan
    from ernie_local.planner.gpu import GpuPlan
    from ernie_local.planner.gpus import GpuModel
    from ernie_local.planner.model_size import ModelSize
    from ernie_local.planner.profile import MachineProfile
    from ernie_local.planner.ram import Budget, CpuPlan
    from ernie_local.planner.rates import GpuRates
    from ernie_local.planner.speed import Speed

_BEST_FIRST = (
    "16",
    *sorted(EXPERT_FORMATS, key=lambda bits: EXPERT_FORMATS[bits].nominal_bits, reverse=True),
)
_STEP = 64 << 20  # suggested limits are multiples of it


@dataclass(frozen=True, slots=True)
class Target:
    """Where it should run. vram_bytes: usable memory of the GPU, None where the CPU computes. profile: of
    this machine, None if it was not measured."""

    ram: Budget
    vram_bytes: int | None = None
    gpu_name: str | None = None
    gpu_rates: GpuRates | None = None
    profile: MachineProfile | None = None


@dataclass(slots=True)
class Report:
    """Plans of one model on one target. solved: what --solve found; flags: options that make it fit."""

    model: ModelSize
    conversation: ChatPlan
    target: Target
    cpu: CpuPlan
    cpu_speed: Speed
    gpu: GpuPlan | None
    gpu_speed: Speed | None
    solved: dict[str, str | int | None] | None = None
    flags: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """On the GPU if one is asked about, else in RAM."""
        return self.cpu.fits if self.gpu is None else self.gpu.fits


def report_on(model: ModelSize, conversation: ChatPlan, target: Target) -> Report:
    """Plans and speeds."""
    from ernie_local.planner.gpu import plan_gpu
    from ernie_local.planner.ram import plan_cpu
    from ernie_local.planner.speed import cpu_speed, gpu_speed

    cpu = plan_cpu(model, conversation, target.ram)
    share = None if cpu.slots_bytes is None else cpu.resident_share(model)
    rates = None if target.profile is None else target.profile.rates_for(is_packed=model.is_packed)
    speed = cpu_speed(model, conversation, share, rates)
    gpu = on_gpu = None
    if target.vram_bytes is not None:
        gpu = plan_gpu(model, conversation, target.vram_bytes, target.ram)
        assert target.gpu_rates is not None
        on_gpu = gpu_speed(model, conversation, gpu, target.gpu_rates)
    return Report(model, conversation, target, cpu, speed, gpu, on_gpu)


def report_on_gpus(
    model: ModelSize, conversation: ChatPlan, ram: Budget
) -> Iterator[tuple[GpuModel, GpuPlan, Speed]]:
    """Every GPU of the table."""
    from ernie_local.planner.gpu import plan_gpu
    from ernie_local.planner.gpus import gpu_models
    from ernie_local.planner.speed import gpu_speed

    for gpu in gpu_models():
        plan = plan_gpu(model, conversation, gpu.usable_bytes, ram)
        yield gpu, plan, gpu_speed(model, conversation, plan, gpu.rates())


def solve(report: Report, options: VramOptions, plain: ModelSize) -> Report:
    """The report on the best setting that fits, and that setting; the given report where none fits.

    plain: the model before --bits.
    """
    if options.solve == "ctx":
        return _solve_context(report)
    if options.solve == "bits":
        return _solve_bits(report, options, plain)
    report.solved = _expert_facts(report)
    return report


def _solve_context(report: Report) -> Report:
    longest = _longest_context(report)
    if longest is None:
        report.solved = {"ctx_size": None}
        return report
    conversation = dataclasses.replace(report.conversation, context_size=longest)
    found = report_on(report.model, conversation, report.target)
    found.solved = {"ctx_size": longest}
    return found


def _longest_context(report: Report) -> int | None:
    from ernie_local.planner.fit import longest_context

    def fits(context_size: int) -> bool:
        conversation = dataclasses.replace(report.conversation, context_size=context_size)
        found = report_on(report.model, conversation, report.target)
        return found.fits and _is_within(found)

    least = max(1024, -(-(report.conversation.image_tokens + 512) // 1024) * 1024)
    most = report.model.config.text.max_position_embeddings
    return longest_context(most, fits, least) if least <= most else None


def _is_within(report: Report) -> bool:
    return (report.cpu.memory if report.gpu is None else report.gpu.vram).fits


def _solve_bits(report: Report, options: VramOptions, plain: ModelSize) -> Report:
    """The most bits with every text expert in fast memory, else the fewest bits that fit at all."""
    last: Report | None = None
    for bits in _BEST_FIRST:
        found = _with_bits(report, bits, options, plain)
        if not found.fits:
            continue
        found.solved = {"bits": bits}
        last = found
        share = found.cpu.resident_share(found.model) if found.gpu is None else found.gpu.resident_share
        if share >= 1 and _is_within(found):
            return found
    if last is None:
        report.solved = {"bits": None}
        return report
    return last


def _with_bits(report: Report, bits: BitsName, options: VramOptions, plain: ModelSize) -> Report:
    from ernie_cli.vram.model import converse

    model = as_quantized(plain, bits, options.dense)
    conversation = dataclasses.replace(converse(model, options), images=report.conversation.images)
    return report_on(model, conversation, report.target)


def _expert_facts(report: Report) -> dict[str, str | int | None]:
    """How many text experts of each layer are in memory in decode, of how many."""
    bank = report.model.config.text.text_bank
    num_experts = 0 if bank is None else bank.num_experts
    share = report.cpu.resident_share(report.model) if report.gpu is None else report.gpu.resident_share
    return {"experts_per_layer": int(share * num_experts) if report.fits else 0, "of": num_experts}


def flags_that_fit(report: Report, options: VramOptions, plain: ModelSize) -> list[str]:
    """Options, each of which alone makes it fit, the mildest first."""
    flags: list[str] = []
    longest = _longest_context(report)
    if longest is not None and longest < report.conversation.context_size:
        flags.append(f"--ctx-size {longest // 1024}k")
    if plain.config.quantization is None:
        tried = _BEST_FIRST[_BEST_FIRST.index(options.bits or "16") + 1 :]
        enough = next((bits for bits in tried if _with_bits(report, bits, options, plain).fits), None)
        if enough is not None:
            flags.append(f"--bits {enough}")
    if report.gpu is None:
        flags.append(f"--ram {_rounded_up(report.cpu.least_bytes)}")
    elif report.gpu.tier == "needs ram":
        flags.append(f"--ram {_rounded_up(report.gpu.host_bytes)}")
    else:
        flags.append(f"a GPU with {_rounded_up(report.gpu.least_bytes)} of usable memory")
    return flags


def _rounded_up(num_bytes: int) -> str:
    return f"{-(-num_bytes // _STEP) * _STEP >> 20}MiB"
