"""Quantizes a float checkpoint unit by unit; a run can be resumed after every unit.

The order: disk space; a look through a source that is here, where experts are calibrated; stage by stage the
tensors that need no calibration, and the experts; audit; report.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from ernie_quant.pace import REPORT_SECONDS, Pace, audit_seconds
from ernie_quant.place import is_made, rehearse_rename, telling_full_disk
from ernie_quant.plan import Plan, expert_tokens, plan_run, unit_costs
from ernie_quant.recipe import Recipe
from ernie_quant.rehearsal import rehearse
from ernie_quant.report import write_numbers, write_report
from ernie_quant.report.contents import gather
from ernie_quant.shard_store import Download, ShardStore
from ernie_quant.shard_uses import ShardUses
from ernie_quant.source import FloatSource, fixed_tensor
from ernie_quant.source_check import check_costs, check_weights
from ernie_quant.stages import WorkStage, make_stages, source_files
from ernie_quant.tokens import TokenTable
from ernie_quant.work import (
    Units,
    Work,
    calibration_identity,
    source_identity,
    tell_nobody,
    version_identity,
)


def quantize_checkpoint(job: Job) -> ExpertReports:
    """Make the checkpoint; it appears as `job.out` when it is complete. Returns the reports of `gptq`.

    UsageError if `out` is not empty, the source is quantized already, or other work is in the way;
    ModelUnusable for a damaged source; Stopped, with finished units kept, if `should_stop` returns True.
    """
    config = read_config(job.source)
    check_job(job, config)
    tables = dataclasses.replace(
        job.tables,
        source=_source_table(job),
        calibration={"method": job.recipe.method, "sequences": str(len(job.sequences))},
    )
    new_config = dataclasses.replace(config, quantization=tables)
    table = TokenTable.of(job.sequences, config) if job.calibrates else None
    if is_made(job.out):
        return _remove_work(job, config, tables)
    for note in ModelFiles(job.source, config).missing_notes():
        job.note(f"the checkpoint will lack it too: {note}")
    with telling_full_disk(job.partial, "finished units are kept"), ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(job.source, config))
        files = CheckpointFiles(job.partial, _entries(checkpoint, new_config))
        fixed = _fixed(job, files)
        stages = make_stages(fixed, config.text)
        plan = _plan(job, config, files, checkpoint, stages)
        # Not before the checks: a refused job leaves nothing behind.
        work = stack.enter_context(closing(Work(job.partial, _identity(job, tables), job.resume)))
        if job.hub is not None:
            job.hub.pin(work.folder)
        rehearse_rename(work.folder, job.out)
        _make_files(job, files, plan, work)
        _write_config(job, tables)
        copy_companions(job.source, checkpoint, job.partial, job.note)
        costs = _unit_costs(job, new_config, fixed, checkpoint)
        checking = audit_seconds(files.total_bytes)
        pace = _rehearsed_pace(job, new_config, costs, job.partial)
        if job.calibrates:
            left = {unit: cost for unit, cost in costs.items() if unit not in work.done}
            minutes = math.ceil((pace.seconds(left) + REPORT_SECONDS + checking) / 60)
            rest = "the rest" if len(left) < len(costs) else "all"
            job.on_note(f"tried an expert of each kind: about {minutes} min for {rest}")
        units = Units(work, files, costs, pace, REPORT_SECONDS + checking, job.on_unit, job.should_stop)
        agreement = _make_units(job, new_config, table, checkpoint, stages, units)
        reports = reports_of(new_config, work.done)
        contents = gather(job, config, tables, reports, agreement)
        write_numbers(job.partial, contents)
        units.tell("checking the new checkpoint", REPORT_SECONDS + checking)
        audited = audit(job.partial, job.source, files.total_bytes, job.note, plan.memory_bytes)
        units.tell("writing the report", REPORT_SECONDS)
        write_report(job.partial, contents, audited, job.source)
        work.finish(job.out)
    return reports


def _make_units(
    job: Job,
    config: ModelConfig,
    table: TokenTable | None,
    checkpoint: Checkpoint,
    stages: Sequence[WorkStage],
    units: Units,
) -> dict[int, float] | None:
    """Make all tensors; the agreement of routing, if there is calibration. config: with the new tables."""
    assert config.quantization is not None
    for unit in check_weights(checkpoint, units.done) if _looks_through(job) else ():
        units.finish(unit)
    source = FloatSource(checkpoint)
    # For weights that have no second moments.
    without_data = Recipe("clip") if job.recipe.method == "gptq" else job.recipe
    # Opening checks that every tensor of the model exists once, in its shape.
    with (
        open_checkpoint(job.partial, read_config(job.partial)) as made,
        _fetching(job, checkpoint, stages, units) as finish_stage,
    ):
        calibration = None if table is None else Calibration(job, config, table, source, made, units)
        for stage in stages:
            for entry in stage.fixed:
                if entry.name not in units.done:
                    values = fixed_tensor(entry, source, config.quantization, without_data)
                    units.files.write(entry.name, values)
                    units.finish(entry.name)
            if calibration is not None:
                calibration.run(stage.layer_id)
            finish_stage()
        return None if calibration is None else calibration.agreement()


def _looks_through(job: Job) -> bool:
    """Whether all weights are read before hours of work: without calibration the work itself takes minutes,
    and those of a source on the hub are not here."""
    return job.calibrates and (job.hub is None or job.hub.model is None)


def _unit_costs(
    job: Job, config: ModelConfig, fixed: Sequence[TensorEntry], checkpoint: Checkpoint
) -> dict[str, float]:
    """The cost of each unit of the work. config: with the new tables."""
    checks = check_costs(checkpoint) if _looks_through(job) else {}
    return checks | unit_costs(config, fixed, job.sequences, job.recipe)


@contextmanager
def _fetching(
    job: Job, checkpoint: Checkpoint, stages: Sequence[WorkStage], units: Units
) -> Iterator[Callable[[], None]]:
    """Inside, `checkpoint` gets the files of a source on the hub as they come. Yields what ends a stage."""
    if job.hub is None or job.hub.model is None:
        yield tell_nobody
        return
    uses = _shard_uses(job, checkpoint, stages, units.done)
    folder = units.work.folder / "shards"
    with closing(ShardStore(job.hub.model, uses, folder, job.on_download, units.check_stop)) as store:
        checkpoint.open_file = store.open

        def finish_stage() -> None:
            checkpoint.close()  # or a deleted file would keep its place on the disk
            store.finish_stage()

        yield finish_stage
    job.hub.remember()


def _shard_uses(
    job: Job, checkpoint: Checkpoint, stages: Sequence[WorkStage], done: Collection[str]
) -> ShardUses:
    names = source_files(stages, checkpoint.accounts, done, calibrates=job.calibrates)
    return ShardUses(names, keeps=job.hub is not None and job.hub.keeps)


def _source_table(job: Job) -> dict[str, str]:
    if job.hub is None:
        return {"identity": source_identity(job.source), "name": job.source.name}
    return {"identity": job.hub.identity, "name": job.hub.repo}


def _plan(
    job: Job, config: ModelConfig, files: CheckpointFiles, checkpoint: Checkpoint, stages: Sequence[WorkStage]
) -> Plan:
    """What the job takes but for time, if nothing of it is done. DoesNotFit as from `plan_run`."""
    plan = plan_run(config, job.sequences, files, job.most_memory)
    plan = dataclasses.replace(plan, companion_bytes=_copied_bytes(job))
    if job.hub is None or job.hub.model is None:
        return plan
    uses = _shard_uses(job, checkpoint, stages, ())
    return dataclasses.replace(plan, download=Download.of(job.hub.model, uses))


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
        fixed = _fixed(job, files)
        plan = _plan(job, config, files, checkpoint, make_stages(fixed, config.text))
        costs = _unit_costs(job, new_config, fixed, checkpoint)
    if job.hub is not None and plan.download is not None:
        rate = job.hub.measure_rate()
        download = dataclasses.replace(plan.download, seconds=plan.download.num_bytes / rate)
        plan = dataclasses.replace(plan, download=download)
    if not job.calibrates:
        return plan
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.out.parent, prefix=".ernie-local.") as scratch:
        pace = _rehearsed_pace(job, new_config, costs, Path(scratch))
    seconds = pace.seconds(costs) + REPORT_SECONDS + audit_seconds(plan.weight_bytes)
    return dataclasses.replace(plan, seconds=seconds)


def _rehearsed_pace(job: Job, config: ModelConfig, costs: Mapping[str, float], directory: Path) -> Pace:
    """What units of these costs take; pages that are made for it are in `directory` for a moment.

    config: with the new tables.
    """
    if not job.calibrates:
        return Pace(costs, {})
    return Pace(costs, rehearse(config, job.recipe, directory, expert_tokens(config, job.sequences)))


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
    if free < plan.work_bytes:
        raise DoesNotFit(
            f"{plan.work_bytes} bytes are needed beside the weights in {job.partial}, {free} are free",
            "hidden states of the calibration tokens, and files of a source on the hub, lie there for a time",
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
