"""Reads the table of GPUs (gpus.csv): usable memory, and the rates that speed is predicted from.

Public figures of data sheets, checked as docs/decisions.md says; usable memory is what drivers report less
what they keep for themselves. None of these GPUs was measured here.
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from ernie_local.errors import UsageError, parameter
from ernie_local.planner.rates import GpuRates
from ernie_local.sizes import GIB, MIB

_TABLE = Path(__file__).with_name("gpus.csv")
# Shares of the data sheet that kernels reach of memory and arithmetic, and copies of the link. Assumed.
_MEMORY_SHARE, _LINK_SHARE, _ARITHMETIC_SHARE = 0.8, 0.8, 0.35
_NEAR_MATCHES = 5
# Words of a driver's name that do not identify the model.
_BUILD_WORDS = frozenset("nvidia geforce tesla generation pcie sxm sxm2 sxm4 sxm5 hbm2 hbm2e hbm3".split())
_MEMORY_TOLERANCE = 0.12  # a driver keeps some for itself
# Builds of later versions are for CUDA 13 alone, which begins with Turing (pytorch/pytorch issue 190385).
_TURING, _LAST_BEFORE_TURING = (7, 5), "2.14"
# For a GPU of which only the memory is known: a middling one of recent years.
UNKNOWN_GPU = GpuRates(0.8 * 300e9, 0.8 * 15.8e9, 0.35 * 50e12)


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One line of the table. vram_gb: as it is sold; rates: to expect of kernels, by the data sheet."""

    gpu_id: str
    name: str
    kind: str  # desktop | laptop | server
    vram_gb: int
    usable_bytes: int
    compute_capability: str
    rates: GpuRates

    @property
    def capability(self) -> tuple[int, int]:
        """The compute capability as numbers."""
        major, minor = map(int, self.compute_capability.split("."))
        return major, minor

    @property
    def last_pytorch(self) -> str | None:
        """As the function."""
        return last_pytorch(self.capability)


def last_pytorch(capability: tuple[int, int] | None) -> str | None:
    """The last version of PyTorch that is built for this compute capability; None if newer ones are."""
    return _LAST_BEFORE_TURING if capability is not None and capability < _TURING else None


def gpu_models() -> list[GpuModel]:
    """All GPUs, in the order of the table."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return [
            GpuModel(
                row["id"],
                row["name"],
                row["kind"],
                int(row["vram_gb"]),
                int(row["usable_mib"]) * MIB,
                row["compute_capability"],
                # In 16 bits; sums in float16 (GeForce: float32 at half of it).
                GpuRates(
                    _MEMORY_SHARE * (float(row["memory_gb_s"]) * 1e9),
                    _LINK_SHARE * (float(row["pcie_gb_s"]) * 1e9),
                    _ARITHMETIC_SHARE * (float(row["fp16_tflops"]) * 1e12),
                ),
            )
            for row in csv.DictReader(file)
        ]


def usable_bytes(size: int) -> int:
    """What programs have of a GPU that is sold with `size` bytes: the least of the table, else 9/10."""
    return min(
        (gpu.usable_bytes for gpu in gpu_models() if gpu.vram_gb * GIB == size), default=size * 9 // 10
    )


def find_gpu_model(text: str) -> GpuModel:
    """The GPU with this id, or a name as people or drivers write it. UsageError for an unknown one."""
    gpus = gpu_models()
    wanted = _bare(text)
    for gpu in gpus:
        if wanted in (_bare(gpu.gpu_id), _bare(gpu.name)):
            return gpu
    words, gigabytes = _model_words(text)
    alike = [gpu for gpu in gpus if _model_words(gpu.name)[0] == words and gigabytes in (None, gpu.vram_gb)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise UsageError(
            f"{parameter('gpu', text)} is the name of {len(alike)} of {len(gpus)} known GPUs",
            "they differ in their memory",
            " or ".join(parameter("gpu", gpu.gpu_id) for gpu in alike),
        )
    names = {_bare(gpu.gpu_id): gpu.gpu_id for gpu in gpus}
    digits = "".join(filter(str.isdigit, text))
    similar = [gpu.gpu_id for gpu in gpus if len(digits) >= 3 and digits in gpu.gpu_id]
    similar += [names[near] for near in difflib.get_close_matches(wanted, names, _NEAR_MATCHES, cutoff=0.5)]
    found = list(dict.fromkeys(similar))[:_NEAR_MATCHES]
    raise UsageError(
        f"{parameter('gpu', text)} is not one of {len(gpus)} known GPUs",
        f"similar ones are {', '.join(found)}" if found else "no name in the table is similar",
        f"one of these, {parameter('gpu', 'all')} for all, or {parameter('vram')} for any other GPU",
    )


def match_gpu_model(name: str, total_bytes: int | None = None) -> GpuModel | None:
    """The GPU that a driver names like this, with `total_bytes` of memory; None where the table has none.

    Drivers add how it is built in ("NVIDIA A100-SXM4-80GB"), and omit the memory where two GPUs of one name
    differ only in that.
    """
    wanted, gigabytes = _model_words(name)
    alike = [gpu for gpu in gpu_models() if _model_words(gpu.name)[0] == wanted]
    if gigabytes is None and total_bytes is not None:
        gigabytes = round(total_bytes / GIB)
    if gigabytes is None:
        exact = (gpu for gpu in alike if _bare(gpu.name) == _bare(name))
        return alike[0] if len(alike) == 1 else next(exact, None)
    near = [gpu for gpu in alike if abs(gpu.vram_gb - gigabytes) <= _MEMORY_TOLERANCE * gpu.vram_gb]
    return min(near, key=lambda gpu: abs(gpu.vram_gb - gigabytes), default=None)


def _model_words(name: str) -> tuple[list[str], int | None]:
    """The words that identify the model, and the gigabytes in the name."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and word not in _BUILD_WORDS]
    memory = next((word for word in words if re.fullmatch(r"[0-9]+gb", word)), None)
    return [word for word in words if word != memory], None if memory is None else int(memory[:-2])


def _bare(text: str) -> str:
    kept = "".join(filter(str.isalnum, text.lower()))
    return kept.removeprefix("nvidia").removeprefix("geforce")
