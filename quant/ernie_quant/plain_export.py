"""A checkpoint rounded to nearest into our own format: no calibration, one tensor in memory at a time.

The floor that calibrated checkpoints have to beat, and the quick way to a packed model.
"""

from __future__ import annotations

from pathlib import Path

from ernie_local.config import QuantizationConfig
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe


def export_plainly(source: Path, out: Path, tables: QuantizationConfig) -> None:
    """Round `source`, an unquantized checkpoint, into the new directory `out`, in the formats of `tables`.

    Files beside config and weights are copied. UsageError if `out` is not empty or `source` is quantized.
    """
    quantize_checkpoint(Job(source, out, tables, Recipe("rtn")))
