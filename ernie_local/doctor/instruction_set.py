"""The check of the instruction set that the CPU kernels use, and of what a faster one would need."""

from __future__ import annotations

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.native import InstructionSet, known_instruction_sets, native_module

NAME = "cpu"


def check(setting: str, *, is_forced: bool) -> Finding:
    """Slow where a faster set could run, or where only the one that needs no feature can.

    setting: what a user sets to force a set; is_forced: whether it was set.
    """
    module = native_module()
    if module is None:
        import torch

        facts = _facts(None, is_forced, (), [])
        own = torch.backends.cpu.get_cpu_capability()
        return Finding(
            NAME, "ok", f"PyTorch's own choice, {own}: there are no kernels to choose for", None, facts
        )
    in_use, known = module.instruction_set(), known_instruction_sets()
    facts = _facts(in_use, is_forced, known, module.cpu_features())
    available = [each.name for each in known if each.is_available]
    faster = known[: [each.name for each in known].index(in_use)]
    out_of_reach = [each for each in faster if each.is_built and each.lacking]
    text = in_use + (f", forced by {setting}" if is_forced else "")
    others = [name for name in available if name != in_use]
    if others:
        text += f"; also here: {', '.join(others)}"
    for each in out_of_reach:
        text += f"; lacks {', '.join(each.lacking)} for {each.name}"
    if in_use != available[0]:
        return Finding(NAME, "slow", text, f"unset {setting}: {available[0]} is faster", facts)
    if in_use == known[-1].name:
        return Finding(NAME, "slow", text, _how_to_leave_the_slowest(out_of_reach), facts)
    return Finding(NAME, "ok", text, None, facts)


def _how_to_leave_the_slowest(out_of_reach: list[InstructionSet]) -> str:
    if not out_of_reach:
        return "build the kernels with GCC or Clang on x86-64 or 64-bit ARM: no others were built"
    easiest = out_of_reach[-1]
    return f"use a processor (or a virtual machine that shows its own) with {', '.join(easiest.lacking)}"


def _facts(
    in_use: str | None, is_forced: bool, known: tuple[InstructionSet, ...], features: list[str]
) -> dict[str, object]:
    return {
        "in_use": in_use,
        "is_forced": is_forced,
        "available": [each.name for each in known if each.is_available],
        "unavailable": [
            {"name": each.name, "is_built": each.is_built, "lacking": list(each.lacking)}
            for each in known
            if not each.is_available
        ],
        "features": features,
    }
