"""Checks the CPU kernels: whether they are built, which instruction set they use, and their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from ernie_local.doctor.check import Diagnosis, Subject
from ernie_local.errors import ErnieLocalError
from ernie_local.machine.libraries import load_failure
from ernie_local.planner.cpu_limits import usable_cpus

if TYPE_CHECKING:
    import torch

    from ernie_local.packing import LowBitFormat, QuantizedMatrix

_BUILD_KEYS = ("version", "build_type", "compiler", "nanobind", "python")
# Relative to the output. Tokens are rounded to int8, which costs an expert up to 1.7 % (docs/decisions.md).
LARGEST_DIFFERENCE = 2e-2
_NUM_TOKENS = (1, 15, 33)  # alone, few, and more than are rounded twice
_ROWS, _COLUMNS, _INNER = 48, 272, 80  # no whole numbers of groups
_Product = tuple[Callable[[], "torch.Tensor"], "torch.Tensor"]  # what the kernels compute, what is right


def check_native_module(_: Subject) -> Diagnosis:
    """Slow without the compiled module, and where it was built without optimization."""
    from ernie_local.kernels.native import native_absence, native_module

    module = native_module()
    if module is None:
        absence = native_absence()
        assert absence is not None
        facts = {"present": False, "reason": absence.why, "build": dict.fromkeys(_BUILD_KEYS)}
        return Diagnosis.slow(f"not there, PyTorch computes: {absence.why}", absence.hint, facts)
    build = {key: module.build_info()[key] for key in _BUILD_KEYS}
    facts = {"present": True, "reason": None, "build": build}
    text = "{version} {build_type} by {compiler}, nanobind {nanobind}, Python {python}".format(**build)
    if build["build_type"] == "Debug":
        return Diagnosis.slow(text, "build it as Release: `pip install --force-reinstall --no-deps .`", facts)
    return Diagnosis.ok(text, facts)


def check_instruction_set(subject: Subject) -> Diagnosis:
    """Slow where a faster set could run, or could if it were built, or where only the scalar one can."""
    from ernie_local.kernels.native import known_instruction_sets, native_module

    setting, is_forced = subject.isa_setting, subject.isa_is_forced
    module = native_module()
    in_use = None if module is None else module.instruction_set()
    known = () if module is None else known_instruction_sets()
    available = [each.name for each in known if each.is_available]
    facts = {
        "in_use": in_use,
        "is_forced": is_forced,
        "available": available,
        "unavailable": [
            {"name": each.name, "is_built": each.is_built, "lacking": list(each.lacking)}
            for each in known
            if not each.is_available
        ],
        "features": [] if module is None else module.cpu_features(),
    }
    if in_use is None:
        import torch

        own = torch.backends.cpu.get_cpu_capability()
        return Diagnosis.ok(f"PyTorch's own choice, {own}: there are no kernels to choose for", facts)
    names = [each.name for each in known]
    faster = known[: names.index(in_use)]
    out_of_reach = [each for each in faster if each.is_built and each.lacking]
    not_built = [each.name for each in faster if not each.is_built and not each.lacking]
    text = in_use + (f", forced by {setting}" if is_forced else "")
    others = [name for name in available if name != in_use]
    if others:
        text += f"; also here: {', '.join(others)}"
    for each in out_of_reach:
        text += f"; lacks {', '.join(each.lacking)} for {each.name}"
    for name in not_built:
        text += f"; {name} was not built"
    if in_use != available[0]:
        return Diagnosis.slow(text, f"unset {setting}: {available[0]} is faster", facts)
    if in_use != names[-1]:
        if not_built:
            return Diagnosis.slow(
                text, f"build the kernels with a newer GCC or Clang: {not_built[0]} is faster", facts
            )
        return Diagnosis.ok(text, facts)
    fix = "build the kernels with GCC or Clang on x86-64 or 64-bit ARM: no others were built"
    if out_of_reach:
        lacking = ", ".join(out_of_reach[-1].lacking)
        fix = f"use a processor (or a virtual machine that shows its own) with {lacking}"
    return Diagnosis.slow(text, fix, facts)


def check_results(subject: Subject) -> Diagnosis:
    """Fails where small products of any instruction set differ too much from plain PyTorch."""
    setting = subject.isa_setting
    try:
        differences = measure_differences()
    except RuntimeError as error:
        failed = load_failure(error)
        if failed is None:
            raise
        unknown = {"limit": LARGEST_DIFFERENCE, "largest_difference": None, "differences": list[object]()}
        return Diagnosis.fails(f"{failed.what}; {failed.why}", failed.hint, unknown)
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
        return Diagnosis.ok("nothing to test: without kernels PyTorch computes by itself", facts)
    wrong = {name: value for name, value in differences.items() if value > LARGEST_DIFFERENCE}
    if not wrong:
        text = f"relative error {largest:.3f}, limit {LARGEST_DIFFERENCE} ({', '.join(differences)})"
        return Diagnosis.ok(text, facts)
    shown = ", ".join(f"{name} {value:.3g}" for name, value in wrong.items())
    text = f"relative error over the limit {LARGEST_DIFFERENCE}: {shown}"
    right = next((name for name in differences if name not in wrong), None)
    fix = (
        "install again with another C++ compiler" if right is None else f"{setting}={right} computes rightly"
    )
    return Diagnosis.fails(text, f"{fix}; please report this", facts)


def measure_differences() -> dict[str, float]:
    """Instruction set to its largest relative difference, infinite where a kernel gave no number.

    Empty without the native module. Leaves in use what was in use.
    """
    from ernie_local.kernels.native import native_module

    module = native_module()
    if module is None:
        return {}
    import torch

    before, threads, differences = module.instruction_set(), torch.get_num_threads(), {}
    # As when a model is loaded: thousands of threads, by a wrong setting, would end the process.
    torch.set_num_threads(min(threads, usable_cpus()))
    try:
        products = list(_products())
        for name in module.instruction_sets():
            module.use_instruction_set(name)
            differences[name] = max(_relative_difference(*product) for product in products)
    finally:
        torch.set_num_threads(threads)
        module.use_instruction_set(before)
    return differences


def _relative_difference(compute: Callable[[], torch.Tensor], expected: torch.Tensor) -> float:
    try:
        actual = compute()
    except ErnieLocalError:  # the kernel found fault with numbers that are right
        return math.inf
    difference = float((actual - expected).norm() / expected.norm())
    return difference if math.isfinite(difference) else math.inf


def _products() -> Iterator[_Product]:
    """Of a matrix in each format, and of two experts, with one token, few, and many."""
    import torch

    from ernie_local.kernels.arguments import ExpertsCall, PackedMatrix
    from ernie_local.kernels.experts import packed_experts
    from ernie_local.kernels.linear import packed_linear
    from ernie_local.kernels.reference import plain_experts, plain_linear
    from ernie_local.packing import FORMATS, ExpertPage, find_format, pack_matrix, pack_page

    generator = torch.Generator().manual_seed(0)
    for name, low_bit in FORMATS.items():
        packed = pack_matrix(_random_matrix(low_bit, _ROWS, _COLUMNS, generator))
        matrix = PackedMatrix(packed, name, _ROWS)
        for num_tokens in _NUM_TOKENS:
            tokens = torch.randn(num_tokens, _COLUMNS, generator=generator)
            yield partial(packed_linear, tokens, matrix), plain_linear(tokens, matrix)

    generator.manual_seed(0)
    w4, gate_up, down = find_format("w4"), (_INNER, _COLUMNS), (_COLUMNS, _INNER)
    slots = torch.stack(
        [
            pack_page(
                ExpertPage(*(_random_matrix(w4, *shape, generator) for shape in (gate_up, gate_up, down)))
            )
            for _ in range(2)
        ]
    )
    for num_tokens in _NUM_TOKENS:
        hidden = torch.randn(num_tokens, _COLUMNS, generator=generator)
        weights = torch.full((num_tokens, 2), 0.5)
        call = ExpertsCall(hidden, slots, torch.tensor([[0, 1]]).repeat(num_tokens, 1), weights)
        yield partial(packed_experts, call), plain_experts(call)


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
    if low_bit.has_fp16_scales:
        scales = (torch.rand(groups, generator=generator) / 64).half()
        return QuantizedMatrix(low_bit, codes, scales, None, None)
    row_scales = torch.full((rows,), 2 / low_bit.widest_range).half()
    scales = whole(groups, low_bit.highest_scale)
    zeros = whole(groups, low_bit.highest_zero) if low_bit.has_zeros else None
    return QuantizedMatrix(low_bit, codes, scales, zeros, row_scales)


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
