"""Finds the largest setting that fits a machine, and the one number in the way of a larger one.

Asks the plans alone, whatever they decide. Every way to place a model takes no less of any memory for a
longer chat or a larger image, so that all below what fits does, too, and bisection finds the largest.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from ernie_local.defaults import ANSWER_TOKENS, roomier_context
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.planner.fit import CONTEXT_STEP, longest_context
from ernie_local.planner.gpu import GpuPlan, plan_gpu
from ernie_local.planner.model_size import BITS_BEST_FIRST, ModelSize, with_bits
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget, CpuPlan, plan_cpu
from ernie_local.sizes import MIB

Value = TypeVar("Value")
_A4_INCHES = (210 / 25.4, 297 / 25.4)
_LEAST_DPI = 8  # an icon: 66 x 94 pixels
_MEMORY_STEP = 64 * MIB
_MOST_MEMORY_STEPS = 1 << 14  # a TiB


@dataclass(frozen=True, slots=True)
class Machine:
    """vram_bytes: free on its GPU before the process starts; None where the CPU computes. capability: of that
    GPU, as of `plan_gpu`."""

    ram: Budget
    vram_bytes: int | None = None
    capability: tuple[int, int] | None = None

    def plan(self, model: ModelSize, chat: ChatPlan) -> CpuPlan | GpuPlan:
        """Where the model goes on it."""
        if self.vram_bytes is None:
            return plan_cpu(model, chat, self.ram)
        return plan_gpu(model, chat, self.vram_bytes, self.ram, self.capability)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The one number in the way of a setting, which needs more of something than there is.

    of: ram, vram: bytes that the machine has; context_size: tokens of the chat; model_context: those that the
    model was made for; image_size: pixels of an image that it looks at. asked: the setting, for people.
    """

    of: Literal["ram", "vram", "context_size", "model_context", "image_size"]
    needed: int
    available: int
    asked: str


@dataclass(frozen=True, slots=True)
class Solution(Generic[Value]):
    """value: the largest that fits, None where not even the smallest does.

    obstacle: in the way of the next larger one, or of the smallest; None where there is no larger one.
    """

    value: Value | None
    obstacle: Obstacle | None = None


@dataclass(frozen=True, slots=True)
class ScannedPage:
    """An A4 page that was scanned at `dpi` dots per inch."""

    dpi: int
    image: ImageReport


@dataclass(frozen=True, slots=True)
class ExpertsInMemory:
    """How many experts of each layer serve text from the fastest memory in decode, and their share."""

    per_layer: int
    of: int
    share: float


def find_obstacle(plan: CpuPlan | GpuPlan, asked: str) -> Obstacle | None:
    """What keeps this plan from fitting; None where it fits, its peak included."""
    if isinstance(plan, CpuPlan):
        memory, least = plan.memory, plan.least_bytes
        needs_ram = not plan.fits
    else:
        memory, least = plan.vram, plan.host_least_bytes
        needs_ram = plan.tier == "needs ram"
        if plan.tier == "does not fit":
            return Obstacle("vram", plan.least_bytes, memory.limit_bytes or 0, asked)
    if needs_ram:
        limit = memory.limit_bytes if isinstance(plan, CpuPlan) else plan.ram.limit_bytes
        return Obstacle("ram", least, limit or 0, asked)
    if not memory.fits:
        return Obstacle(memory.place, memory.peak.best, memory.limit_bytes or 0, asked)
    return None


def solve_context(model: ModelSize, chat: ChatPlan, machine: Machine) -> Solution[int]:
    """The longest context, in steps of 1024 tokens, with the images of `chat`."""
    most = model.config.text.max_position_embeddings
    least = roomier_context(chat.image_tokens, most)
    if least is None:
        needed = chat.image_tokens + ANSWER_TOKENS
        return Solution(None, Obstacle("model_context", needed, most, f"{needed} tokens"))

    def obstacle(context_size: int) -> Obstacle | None:
        plan = machine.plan(model, replace(chat, context_size=context_size))
        return find_obstacle(plan, f"{context_size} tokens")

    found = longest_context(most, lambda context_size: obstacle(context_size) is None, least)
    if found is None:
        return Solution(None, obstacle(least))
    if found == most:
        more = most + CONTEXT_STEP
        return Solution(found, Obstacle("model_context", more, most, f"{more} tokens"))
    return Solution(found, obstacle(min(most, (found // CONTEXT_STEP + 1) * CONTEXT_STEP)))


def solve_image(
    model: ModelSize, chat: ChatPlan, machine: Machine, processor: ImageProcessorConfig
) -> Solution[ScannedPage]:
    """The largest page of A4 besides the images of `chat`.

    processor: how closely the model looks at it. Pages that it would shrink are not tried.
    """

    def page(dpi: int) -> ImageReport:
        width, height = (round(inches * dpi) for inches in _A4_INCHES)
        return measure_image(f"A4 at {dpi} dpi", (width, height), processor)

    def obstacle(dpi: int) -> Obstacle | None:
        image = page(dpi)
        asked = f"{image.name}, {image.tokens} tokens"
        larger = replace(chat, images=(*chat.images, image))
        needed = larger.image_tokens + ANSWER_TOKENS
        if needed > chat.context_size:
            return Obstacle("context_size", needed, chat.context_size, asked)
        return find_obstacle(machine.plan(model, larger), asked)

    width, height = _A4_INCHES
    most = max(_LEAST_DPI, math.isqrt(int(processor.max_pixels / (width * height))))
    found = _largest(_LEAST_DPI, most, lambda dpi: obstacle(dpi) is None)
    if found is None:
        return Solution(None, obstacle(_LEAST_DPI))
    if found == most:
        pixels = round(width * (most + 1)) * round(height * (most + 1))
        asked = f"A4 at {most + 1} dpi, which the model would shrink"
        return Solution(
            ScannedPage(found, page(found)), Obstacle("image_size", pixels, processor.max_pixels, asked)
        )
    return Solution(ScannedPage(found, page(found)), obstacle(found + 1))


def solve_bits(
    plain: ModelSize, chat_of: Callable[[ModelSize], ChatPlan], machine: Machine, dense: str
) -> Solution[str]:
    """The most bits with every text expert in the fastest memory, else the fewest that fit at all.

    plain: the model before it is quantized; chat_of: the chat of a model, whose number types may follow from
    its formats; dense: the format of other matrices.
    """
    found: str | None = None
    in_the_way: Obstacle | None = None  # of more bits than those found
    for bits in BITS_BEST_FIRST:
        model = with_bits(plain, bits, dense)
        chat = chat_of(model)
        plan = machine.plan(model, chat)
        obstacle = find_obstacle(plan, f"{bits} bits")
        if obstacle is None and plan.resident_share >= 1:
            return Solution(bits, in_the_way)
        if plan.fits:
            found = bits
        in_the_way = obstacle or _obstacle_of_all(model, chat, machine, f"all experts of {bits} bits")
    return Solution(found, in_the_way)


def solve_experts(model: ModelSize, chat: ChatPlan, machine: Machine) -> Solution[ExpertsInMemory]:
    """How many experts of each layer have the fastest memory in decode, which placement makes as many as fit.

    The obstacle is that of all of them.
    """
    plan = machine.plan(model, chat)
    obstacle = find_obstacle(plan, "the chat")
    if not plan.fits:
        return Solution(None, obstacle)
    bank = model.config.text.text_bank
    num_experts = 0 if bank is None else bank.num_experts
    share = plan.resident_share
    found = ExpertsInMemory(int(share * num_experts), num_experts, share)
    return Solution(found, None if share >= 1 else _obstacle_of_all(model, chat, machine, "all experts"))


def _obstacle_of_all(model: ModelSize, chat: ChatPlan, machine: Machine, asked: str) -> Obstacle:
    """What keeps a text expert out of the fastest memory."""
    on_gpu = machine.vram_bytes is not None

    def holds_all(steps: int) -> bool:
        larger = steps * _MEMORY_STEP
        enough = replace(machine, vram_bytes=larger) if on_gpu else Machine(Budget(larger))
        plan = enough.plan(model, chat)
        return plan.fits and plan.resident_share >= 1

    needed = _MEMORY_STEP * bisect_left(range(_MOST_MEMORY_STEPS), True, key=holds_all)
    if on_gpu:
        return Obstacle("vram", needed, machine.vram_bytes or 0, asked)
    return Obstacle("ram", needed, machine.ram.allowed_bytes or 0, asked)


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number of this range that fits; None if not even `least` does."""
    found = least + bisect_left(range(least, most + 1), True, key=lambda one: not fits(one)) - 1
    return found if found >= least else None
