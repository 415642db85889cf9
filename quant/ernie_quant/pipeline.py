"""A float checkpoint to one in our own format, unit by unit, resumable after every one of them.

Owns the order of the work: room on the disk, everything but calibrated experts, then these layer by layer.
How each is made is fixed_tensors.py's and calibration.py's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import closing

import torch

from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit
from ernie_quant.audit import audit
from ernie_quant.calibration import Calibration, ExpertReports
from ernie_quant.costs import unit_costs
from ernie_quant.fixed_tensors import fixed_tensor
from ernie_quant.identity import (
    calibration_identity,
    settings_identity,
    source_identity,
    version_identity,
)
from ernie_quant.job import Job, check_job
from ernie_quant.recipe import Recipe
from ernie_quant.source import Source
from ernie_quant.token_table import TokenTable
from ernie_quant.units import Units
from ernie_quant.work import Work

_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")


def quantize_checkpoint(job: Job) -> ExpertReports:
    """Make the checkpoint; it appears as `job.out` when whole. Reports by (layer, bank, expert) of `gptq`.

    UsageError if `out` is not empty, the source is quantized already, or other work lies in the way;
    ModelUnusable for a damaged source; Stopped, with everything done kept, if `should_stop` says so.
    """
    config = read_config(job.source)
    check_job(job, config)
    tables = dataclasses.replace(
        job.tables,
        source={"identity": source_identity(job.source), "name": job.source.name},
        calibration={"method": job.recipe.method, "sequences": str(len(job.sequences))},
    )
    new_config = dataclasses.replace(config, quantization=tables)
    identity = {
        "source": tables.source["identity"],
        "settings": settings_identity(job.tables, job.recipe),
        "calibration": calibration_identity(job.sequences),
        "version": version_identity(job.recipe),
    }
    calibrates = job.recipe.method == "gptq" and bool(tables.experts)
    table = TokenTable.of(job.sequences, config) if calibrates else None
    reports: ExpertReports = {}
    with (
        closing(Work(job.partial, identity, job.resume)) as work,
        open_checkpoint(job.source, config) as checkpoint,
    ):
        packed = PackedTensors(new_config)
        entries = [
            TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
            for name in checkpoint.names()
            if not packed.replaces(name)
        ]
        entries += [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]
        files = CheckpointFiles(job.partial, entries)
        fixed = [
            entry for entry in files.in_file_order() if not (calibrates and entry.name.startswith("experts."))
        ]
        _make_files(job, files, work)
        _write_rest(job, tables)
        costs = unit_costs(new_config, fixed, job.sequences, job.recipe)
        units = Units(work, files, costs, job.on_unit, job.should_stop)
        source = Source(checkpoint)
        # How weights are quantized for which no second moments are taken.
        without_data = Recipe("clip") if job.recipe.method == "gptq" else job.recipe
        for entry in fixed:
            if not units.is_done(entry.name):
                files.write(entry.name, fixed_tensor(entry, source, tables, without_data))
                units.finish(entry.name)
        # Every tensor of the model is there once, in its shape.
        with open_checkpoint(job.partial, read_config(job.partial)) as made:
            if table is not None:
                calibration = Calibration(job, new_config, table, source, made, files, work, units)
                calibration.run()
                reports = calibration.reports
        audit(job.partial, job.source, files.total_bytes, job.on_note)
        work.finish(job.out)
    return reports


def _make_files(job: Job, files: CheckpointFiles, work: Work) -> None:
    """Headers and room for everything, once."""
    if "files" in work.done:
        return
    try:
        files.create()
    except OSError as error:
        raise DoesNotFit(
            f"{files.total_bytes} bytes for the weights cannot be had in {job.partial}, "
            f"{shutil.disk_usage(job.partial).free} are free",
            error.strerror or str(error),
            "free that much on the disk, or name a directory on another one",
        ) from error
    files.sync()
    work.record("files")


def _write_rest(job: Job, tables: QuantizationConfig) -> None:
    """config.json with the tables, and every file of the source beside config and weights."""
    raw = json.loads((job.source / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = tables.to_json()
    (job.partial / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    if job.statistics is not None:
        shutil.copy(job.statistics, job.partial / "statistics.json")
    for path in job.source.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copy(path, job.partial / path.name)
