"""Compares the memory that the process takes with what was planned for it, phase by phase."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ernie_local.errors import InputUnreadable
from ernie_local.kernels.gpu import capability_of
from ernie_local.loading import LoadedModel, LoadOptions
from ernie_local.loading.loader import MemoryLimits
from ernie_local.loading.options import dtype_name, find_device
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.planner.free_memory import free_memory, process_memory
from ernie_local.planner.gpu import plan_gpu
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget, plan_cpu
from ernie_local.planner.terms import MemoryPlan
from ernie_local.session.answer import peak_memory_bytes

_PAGE = (1654, 2339)  # A4 at 200 dpi, in pixels: the image that the plan counts with


class ServedMemory:
    """The memory of a server. Made before the model is loaded, as what is free then is the budget."""

    def __init__(self, options: LoadOptions) -> None:
        """options: as the model will be loaded; UsageError as of `load_model`."""
        device = find_device(options.device)
        limits = MemoryLimits.of(options, device)
        free = free_memory() + process_memory() if limits.ram is None else None
        self._ram = Budget(limits.ram, free, limits.reserve)
        self._device = device
        self._gpu_free = 0 if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
        self._vram = self._gpu_free if limits.vram is None else limits.vram
        self._plans: tuple[MemoryPlan, ...] = ()

    def plan(self, model: LoadedModel) -> None:
        """Plan for chats that fill their contexts, each with an image of a page where that has room."""
        size, settings = read_model(model.directory), model.settings
        report = _page_report(model)
        chat = ChatPlan(
            settings.context_size,
            dtype_name(model.network.dtype),
            dtype_name(settings.kv_dtype),
            () if report is None else (report,),
            parallel=settings.parallel,
        )
        if self._device.type == "cpu":
            self._plans = (plan_cpu(size, chat, self._ram).memory,)
            return
        plan = plan_gpu(size, chat, self._vram, self._ram, capability_of(self._device))
        self._plans = (plan.vram, plan.ram)

    def as_json(self) -> list[dict[str, Any]]:
        """Each memory with its budget, what is used now, and the bytes of each phase and of its terms."""
        return [self._described(plan) for plan in self._plans]

    def _described(self, plan: MemoryPlan) -> dict[str, Any]:
        is_ram = plan.place == "ram"
        used = process_memory() if is_ram else self._gpu_free - torch.cuda.mem_get_info(self._device)[0]
        return {
            "place": plan.place,
            "limit_bytes": plan.limit_bytes,
            "used_bytes": max(0, used),
            "peak_bytes": peak_memory_bytes() if is_ram else None,
            "phases": {phase: asdict(plan.phase(phase)) for phase in plan.phases},
            "terms": [
                {"name": term.name, "bytes": {phase: one.best for phase, one in term.phases.items()}}
                for term in plan.terms
                if term.most.best
            ],
        }


def _page_report(model: LoadedModel) -> ImageReport | None:
    """What the model sees of a page; None where it sees no images, or the context has no room for one."""
    if not model.config.reads_images:
        return None
    try:
        report = measure_image("a page", _PAGE, model.image_processor)
    except InputUnreadable:
        return None
    return report if report.tokens < model.settings.context_size // 2 else None
