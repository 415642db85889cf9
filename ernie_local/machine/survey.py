"""Makes all measurements of this machine, in order, and derives its rates from them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.machine.cpu import (
    PLAIN_PROMPT,
    PROMPT,
    format_measurement,
    measure_kernels,
    measured_formats,
)
from ernie_local.machine.disk import (
    PAGE_BYTES,
    holds_pages,
    measure_disk,
    measure_small_reads,
    temporary_file,
)
from ernie_local.machine.fixed_costs import FixedCosts, measure_fixed_costs, write_small_packed
from ernie_local.machine.gpu import GPU_LINK, GPU_MEMORY, GPU_OPERATIONS, measure_gpu
from ernie_local.planner.profile import Measurement
from ernie_local.planner.rates import GpuRates, Rates

DISK, SMALL_READS = "disk_bytes_per_second", "disk_4096_bytes_per_second"
_DISK_SECONDS, _SMALL_READ_SECONDS = 1.5, 0.2
_PLAIN_FORMATS = ("float32", "bfloat16")

Teller = Callable[[str], None]  # told what is measured now


@dataclass(frozen=True, slots=True)
class Survey:
    """Rates of packed weights and of plain ones, and all that was measured, by name."""

    rates: Rates
    plain_rates: Rates
    measurements: dict[str, Measurement]


def survey_machine(tell: Teller, model_file: Path | None = None, page_bytes: int = PAGE_BYTES) -> Survey:
    """Measure everything; half a minute.

    model_file: a file of the model's, to read from where it is large enough; else one is written to the
    folder for temporary files. page_bytes: of a read.
    """
    measurements: dict[str, Measurement] = {}
    with tempfile.TemporaryDirectory(prefix="ernie-local-bench.") as folder:
        tell("disk")
        measurements |= _measure_disk(model_file, page_bytes, Path(folder))
        tell("CPU kernels")
        measurements |= dict(measure_kernels())
        gpu = None
        if torch.cuda.is_available():
            tell("gpu")
            found = measure_gpu(torch.device("cuda"))
            measurements |= found
            gpu = GpuRates(*(found[name].median for name in (GPU_MEMORY, GPU_LINK, GPU_OPERATIONS)))
        rates = _byte_rates(measurements, measured_formats(), PROMPT, gpu)
        plain_rates = _byte_rates(measurements, _PLAIN_FORMATS, PLAIN_PROMPT, gpu)
        tell("what a decoded token costs beside reading weights")
        nano, packed = resolve_model("nano"), Path(folder) / "packed"
        write_small_packed(nano, packed)
        costs = measure_fixed_costs(packed, rates)
        plain_costs = measure_fixed_costs(nano, plain_rates)
    measurements |= _named(costs, "") | _named(plain_costs, "plain_")
    return Survey(costs.added_to(rates), plain_costs.added_to(plain_rates), measurements)


def _measure_disk(model_file: Path | None, page_bytes: int, folder: Path) -> dict[str, Measurement]:
    source: AbstractContextManager[Path] = temporary_file(folder)
    if model_file is not None and holds_pages(model_file, page_bytes):
        source = nullcontext(model_file)
    with source as path:
        return {
            DISK: measure_disk(path, page_bytes, _DISK_SECONDS).speed,
            SMALL_READS: measure_small_reads(path, _SMALL_READ_SECONDS),
        }


def _byte_rates(
    measured: dict[str, Measurement], formats: tuple[str, ...], prompt: str, gpu: GpuRates | None
) -> Rates:
    """Without the costs of tokens and layers; the first format stands for those that were not measured."""
    each = {
        name: measured[format_measurement(name)].median for name in (*measured_formats(), *_PLAIN_FORMATS)
    }
    return Rates(
        disk_bytes_per_second=measured[DISK].median,
        memory_bytes_per_second=each[formats[0]],
        operations_per_second=measured[prompt].median,
        token_seconds=0.0,
        layer_seconds=0.0,
        gpu=gpu,
        format_rates=each,
    )


def _named(costs: FixedCosts, prefix: str) -> dict[str, Measurement]:
    return {
        f"{prefix}token_seconds": costs.token,
        f"{prefix}layer_seconds": costs.layer,
        f"{prefix}paged_layer_seconds": costs.paged_layer,
        f"{prefix}page_seconds": costs.page,
    }
