"""Quantizes a float checkpoint unit by unit; a run can be resumed after every unit.

The order: disk space, a look through the source where experts are calibrated, all tensors that need no
calibration, calibrated experts layer by layer, audit, report.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from ernie_local.checkpoint.header import files_bytes
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import ModelConfig, QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit
from ernie_local.files import replaced
from ernie_local.model_files import ModelFiles
from ernie_local.strict_json import read_json_object
from ernie_quant.audit import audit
from ernie_quant.calibration import Calibration, ExpertReports, reports_of
from ernie_quant.companions import companion_bytes, copy_companions
from ernie_quant.job import Job, check_job
from ernie_quant.measurements import STATISTICS_FILE
from ernie_quant.place import is_made, rehearse_rename
from ernie_quant.plan import Plan, plan_run, rehearse, unit_costs
from ernie_quant.recipe import Recipe
from ernie_quant.report import write_numbers, write_report
from ernie_quant.report.contents import gather
from ernie_quant.source import FloatSource, fixed_tensor
from ernie_quant.source_check import check_costs, check_weights
from ernie_quant.tokens import TokenTable
from ernie_quant.work import Units, Work, calibration_identity, source_identity, version_identity


def quantize_checkpoint(job: Job) -> ExpertReports:
    """Make the checkpoint; it appears as `job.out` when it is complete. Returns the reports of `gptq`.

    UsageError if `out` is not empty, the source is quantized already, or other work is in the way;
    ModelUnusable for a damaged source; Stopped, with finished units kept, if `should_stop` returns True.
    """
    config = read_config(job.source)
    check_job(job, config)
    tables = dataclasses.replace(
        job.tables,
        source={"identity": source_identity(job.source), "name": job.source.name},
        calibration={"method": job.recipe.method, "sequences": str(len(job.sequences))},
    )
    new_config = dataclasses.replace(config, quantization=tables)
    table = TokenTable.of(job.sequences, config) if job.calibrates else None
    reports: ExpertReports = {}
    agreement: dict[int, float] | None = None
    if is_made(job.out):
        return _remove_work(job, config, tables)
    for note in ModelFiles(job.source, config).missing_notes():
        job.on_note(f"the checkpoint will lack it too: {note}")
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(job.source, config))
        files = CheckpointFiles(job.partial, _entries(checkpoint, new_config))
        plan = plan_run(config, job.sequences, files, job.most_memory)
        # Not before the checks: a refused job leaves nothing behind.
        work = stack.enter_context(closing(Work(job.partial, _identity(job, tables), job.resume)))
        rehearse_rename(work.folder, job.out)
        _make_files(job, files, plan, work)
        _write_config(job, tables)
        copy_companions(job.source, checkpoint, job.partial, job.on_note)
        fixed = _fixed(job, files)
        costs = unit_costs(new_config, fixed, job.sequences, job.recipe)
        if job.calibrates:
            costs = check_costs(checkpoint) | costs
        source = FloatSource(checkpoint)
        if job.calibrates and not work.done.keys() & costs.keys():
            pace = rehearse(source, new_config, tables, job.recipe, job.partial)
            minutes = math.ceil(pace * sum(costs.values()) / 60)
            job.on_note(f"tried the largest expert: about {minutes} min for all")
        units = Units(work, files, costs, job.on_unit, job.should_stop)
        if job.calibrates:
            # Without calibration the work itself reads everything within minutes.
            for unit in check_weights(checkpoint, units.done):
                units.finish(unit)
        # For weights that have no second moments.
        without_data = Recipe("clip") if job.recipe.method == "gptq" else job.recipe
        for entry in fixed:
            if entry.name not in units.done:
                files.write(entry.name, fixed_tensor(entry, source, tables, without_data))
                units.finish(entry.name)
        # Opening checks that every tensor of the model exists once, in its shape.
        with open_checkpoint(job.partial, read_config(job.partial)) as made:
            if table is not None:
                reports, agreement = Calibration(job, new_config, table, source, made, units).run()
        contents = gather(job, config, tables, reports, agreement)
        write_numbers(job.partial, contents)
        units.tell("checking the new checkpoint")
        audited = audit(job.partial, job.source, files.total_bytes, job.on_note, plan.memory_bytes)
        units.tell("writing the report")
        write_report(job.partial, contents, audited, job.source)
        work.finish(job.out)
    return reports


def _remove_work(job: Job, config: ModelConfig, tables: QuantizationConfig) -> ExpertReports:
    """Finish a run that was killed after the checkpoint had got its name; returns the reports of that run."""
    work = Work(job.out, _identity(job, tables))
    reports = reports_of(config, work.done)
    work.remove()
    job.on_note(f"{job.out} was complete: only the files of the work were left, and are removed")
    return reports


def _identity(job: Job, tables: QuantizationConfig) -> dict[str, str]:
    settings = json.dumps([job.tables.to_json(), repr(job.recipe)], sort_keys=True)
    return {
        "source": tables.source["identity"],
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
        "calibration": calibration_identity(job.sequences),
        "version": version_identity(job.recipe),
    }


def plan_checkpoint(job: Job) -> Plan:
    """Estimate what the job takes. Only a temporary page is made next to `job.out`, to measure the time.

    Raises what `quantize_checkpoint` raises for impossible arguments.
    """
    config = read_config(job.source)
    check_job(job, config)
    new_config = dataclasses.replace(config, quantization=job.tables)
    with open_checkpoint(job.source, config) as checkpoint:
        files = CheckpointFiles(job.partial, _entries(checkpoint, new_config))
        plan = plan_run(config, job.sequences, files, job.most_memory)
        plan = dataclasses.replace(plan, companion_bytes=_copied_bytes(job))
        if not job.calibrates:
            return plan
        costs = check_costs(checkpoint)
        costs |= unit_costs(new_config, _fixed(job, files), job.sequences, job.recipe)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=job.out.parent, prefix=".ernie-local.") as scratch:
            pace = rehearse(FloatSource(checkpoint), new_config, job.tables, job.recipe, Path(scratch))
    return dataclasses.replace(plan, seconds=pace * sum(costs.values()))


def _copied_bytes(job: Job) -> int:
    measurements = 0 if job.statistics is None else job.statistics.stat().st_size
    return companion_bytes(job.source) + measurements


def checkpoint_bytes(checkpoint: Checkpoint, config: ModelConfig, tables: QuantizationConfig) -> int:
    """Exact bytes of all weight files with these tables, made from a checkpoint of this config."""
    entries = _entries(checkpoint, dataclasses.replace(config, quantization=tables))
    return files_bytes(entries)


def _entries(checkpoint: Checkpoint, new_config: ModelConfig) -> list[TensorEntry]:
    packed = PackedTensors(new_config)
    entries = [
        TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
        for name in checkpoint.names()
        if not packed.replaces(name)
    ]
    return entries + [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]


def _fixed(job: Job, files: CheckpointFiles) -> list[TensorEntry]:
    """The tensors that need no calibration tokens, in the order of the files."""
    return [entry for entry in files.in_file_order() if not (job.calibrates and expert_pages(entry.name))]


def _make_files(job: Job, files: CheckpointFiles, plan: Plan, work: Work) -> None:
    """Create the files with their headers, once, and check that disk space for hidden states is left."""
    if "files" in work.done:
        files.check()
        return
    try:
        files.create()
    except OSError as error:
        raise DoesNotFit(
            f"{files.total_bytes} bytes for the weights cannot be allocated in {job.partial}, "
            f"{shutil.disk_usage(job.partial).free} are free",
            error.strerror or str(error),
            "free that much on the disk, or name a directory on another disk",
        ) from error
    free = shutil.disk_usage(job.partial).free
    if free < plan.scratch_bytes:
        raise DoesNotFit(
            f"{plan.scratch_bytes} bytes are needed beside the weights in {job.partial}, {free} are free",
            "hidden states of the calibration tokens are stored there until the end",
            "free that much on the disk, name a directory on another disk, or use fewer samples",
        )
    files.sync()
    work.record("files")


def _write_config(job: Job, tables: QuantizationConfig) -> None:
    """Write config.json with the tables, and copy the measurements behind them."""
    raw = read_json_object(job.source / "config.json")
    raw["quantization_config"] = tables.to_json()
    with replaced(job.partial / "config.json") as new:
        new.write_text(json.dumps(raw, indent=2), encoding="utf-8")
    if job.statistics is not None:
        with replaced(job.partial / STATISTICS_FILE) as new:
            shutil.copyfile(job.statistics, new)
