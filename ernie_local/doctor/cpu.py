"""Checks the CPU kernels: whether they are built, which instruction set they use, and their results."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ernie_local.doctor.check import Check, Examination, Outcome
from ernie_local.errors import ErnieLocalError

if TYPE_CHECKING:
    import torch

    from ernie_local.kernels.native import InstructionSet
    from ernie_local.packing import LowBitFormat, QuantizedMatrix

_BUILD_KEYS = ("version", "build_type", "compiler", "nanobind", "python")
# Relative to the output. Tokens are rounded to int8, which costs an expert up to 1.7 % (docs/decisions.md).
LARGEST_DIFFERENCE = 2e-2
_NUM_TOKENS = (1, 15, 33)  # alone, few, and more than are rounded twice
_ROWS, _COLUMNS = 48, 272  # no whole number of groups
_Product = tuple[Callable[[], "torch.Tensor"], "torch.Tensor"]  # what the kernels compute, what is right


def _check_kernels(_: Examination) -> Outcome:
    """Slow without the compiled module, and where it was built without optimization."""
    from ernie_local.kernels.native import native_absence, native_module

    module = native_module()
    if module is None:
        absence = native_absence()
        assert absence is not None
        facts = {"present": False, "reason": absence.why, "build": dict.fromkeys(_BUILD_KEYS)}
        return Outcome.slow(f"not there, PyTorch computes: {absence.why}", absence.hint, facts)
    build = module.build_info()
    facts = {"present": True, "reason": None, "build": {key: build[key] for key in _BUILD_KEYS}}
    text = (
        f"{build['version']} {build['build_type']} by {build['compiler']}, nanobind {build['nanobind']}, "
        f"Python {build['python']}"
    )
    if build["build_type"] == "Debug":
        return Outcome.slow(text, "build it as Release: `pip install --force-reinstall --no-deps .`", facts)
    return Outcome.ok(text, facts)


def _check_instruction_set(examination: Examination) -> Outcome:
    """Slow where a faster set could run, or where only the one that needs no feature can."""
    from ernie_local.kernels.native import known_instruction_sets, native_module

    setting, is_forced = examination.isa_setting, examination.isa_is_forced
    module = native_module()
    if module is None:
        import torch

        facts = _facts(None, is_forced, (), [])
        own = torch.backends.cpu.get_cpu_capability()
        return Outcome.ok(f"PyTorch's own choice, {own}: there are no kernels to choose for", facts)
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
        return Outcome.slow(text, f"unset {setting}: {available[0]} is faster", facts)
    if in_use == known[-1].name:
        return Outcome.slow(text, _how_to_leave_the_slowest(out_of_reach), facts)
    return Outcome.ok(text, facts)


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


def _check_results(examination: Examination) -> Outcome:
    """Fails where small products of any instruction set differ too much from plain PyTorch."""
    setting = examination.isa_setting
    differences = measure_differences()
    largest = max(differences.values(), default=0.0)
    facts = {
        "limit": LARGEST_DIFFERENCE,
        "largest_difference": _finite(largest) if differences else None,
        "differences": [
            {"instruction_set": name, "largest_difference": _finite(value)}
            for name, value in differences.items()
        ],
    }
    if not differences:
        return Outcome.ok("nothing to test: without kernels PyTorch computes by itself", facts)
    wrong = {name: value for name, value in differences.items() if value > LARGEST_DIFFERENCE}
    if not wrong:
        text = f"relative error {largest:.3f}, limit {LARGEST_DIFFERENCE} ({', '.join(differences)})"
        return Outcome.ok(text, facts)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in wrong.items())
    text = f"relative error over the limit {LARGEST_DIFFERENCE}: {shown}"
    right = [name for name in differences if name not in wrong]
    return Outcome.fails(
        text,
        (f"{setting}={right[0]} computes rightly" if right else "install again with another C++ compiler")
        + "; please report this",
        facts,
    )


def measure_differences() -> dict[str, float]:
    """Instruction set to its largest relative difference, infinite where a kernel gave no number.

    Empty without the native module. Leaves in use what was in use.
    """
    from ernie_local.kernels.native import native_module

    module = native_module()
    if module is None:
        return {}
    products = [*_linear_products(), *_expert_products()]
    before, differences = module.instruction_set(), {}
    try:
        for name in module.instruction_sets():
            module.use_instruction_set(name)
            differences[name] = max(_relative_difference(*product) for product in products)
    finally:
        module.use_instruction_set(before)
    return differences


def _relative_difference(compute: Callable[[], torch.Tensor], expected: torch.Tensor) -> float:
    try:
        actual = compute()
    except ErnieLocalError:  # the kernel found fault with numbers that are right
        return math.inf
    difference = float((actual - expected).norm() / expected.norm())
    return difference if math.isfinite(difference) else math.inf


def _linear_products() -> list[_Product]:
    import torch

    from ernie_local.kernels.arguments import PackedMatrix
    from ernie_local.kernels.linear import packed_linear
    from ernie_local.kernels.reference import plain_linear
    from ernie_local.packing import FORMATS, pack_matrix

    generator = torch.Generator().manual_seed(0)
    products: list[_Product] = []
    for name, low_bit in FORMATS.items():
        packed = pack_matrix(_random_matrix(low_bit, _ROWS, _COLUMNS, generator))
        matrix = PackedMatrix(packed, name, _ROWS)
        for num_tokens in _NUM_TOKENS:
            tokens = torch.randn(num_tokens, _COLUMNS, generator=generator)
            products.append((partial(packed_linear, tokens, matrix), plain_linear(tokens, matrix)))
    return products


def _expert_products() -> list[_Product]:
    import torch

    from ernie_local.kernels.arguments import ExpertsCall
    from ernie_local.kernels.experts import packed_experts
    from ernie_local.kernels.reference import plain_experts
    from ernie_local.packing import ExpertPage, find_format, pack_page

    generator = torch.Generator().manual_seed(0)
    w4, inner_size = find_format("w4"), 80
    shapes = ((inner_size, _COLUMNS), (inner_size, _COLUMNS), (_COLUMNS, inner_size))
    slots = torch.stack(
        [
            pack_page(ExpertPage(*(_random_matrix(w4, *shape, generator) for shape in shapes)))
            for _ in range(2)
        ]
    )
    products: list[_Product] = []
    for num_tokens in _NUM_TOKENS:
        hidden = torch.randn(num_tokens, _COLUMNS, generator=generator)
        weights = torch.full((num_tokens, 2), 0.5)
        call = ExpertsCall(hidden, slots, torch.tensor([[0, 1]]).repeat(num_tokens, 1), weights)
        products.append((partial(packed_experts, call), plain_experts(call)))
    return products


def _random_matrix(
    low_bit: LowBitFormat, rows: int, columns: int, generator: torch.Generator
) -> QuantizedMatrix:
    """Random codes, scales and zeros; weights of about unit size."""
    import torch

    from ernie_local.packing import QuantizedMatrix

    def whole(shape: tuple[int, int], highest: int) -> torch.Tensor:
        return torch.randint(0, highest + 1, shape, dtype=torch.uint8, generator=generator)

    groups = (rows, low_bit.num_groups(columns))
    codes = whole((rows, columns), low_bit.highest_code)
    if low_bit.is_symmetric:
        scales = (torch.rand(groups, generator=generator) / 64).half()
        return QuantizedMatrix(low_bit, codes, scales, None, None)
    row_scales = torch.full((rows,), 2 / (low_bit.highest_scale * low_bit.highest_code)).half()
    return QuantizedMatrix(
        low_bit, codes, whole(groups, low_bit.highest_scale), whole(groups, low_bit.highest_zero), row_scales
    )


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


KERNELS = Check("kernels", _check_kernels, needs_torch=False)
INSTRUCTION_SET = Check("cpu", _check_instruction_set)
SELF_TEST = Check("self-test", _check_results)
