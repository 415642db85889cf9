"""Quantizes a float checkpoint unit by unit; a run can be resumed after every unit, and shared by processes.

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
from functools import partial
from pathlib import Path

import torch

from ernie_local.adapters.low_rank import Adapter
from ernie_local.adapters.merged import open_merged, read_adapters
from ernie_local.checkpoint.header import files_bytes
from ernie_local.checkpoint.packed import PackedTensors, expert_pages
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import ModelConfig, QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit
from ernie_local.files import replaced
from ernie_local.model_files import ModelFiles
from ernie_local.strict_json import read_json_object
from ernie_quant.answer_gradients import AnswerGradients
from ernie_quant.audit import audit
from ernie_quant.calibration import Calibration, ExpertReports, PageMaker, reports_of
from ernie_quant.companions import companion_bytes, copy_companions
from ernie_quant.dense import DenseMaker, DenseTensors
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
from ernie_quant.source_check import check_costs, source_notes, weight_checks
from ernie_quant.stages import WorkStage, make_stages, source_files
from ernie_quant.tokens import TokenTable
from ernie_quant.units import Units
from ernie_quant.work import (
    FILES_UNIT,
    Work,
    adapters_identity,
    begin_files,
    calibration_identity,
    source_identity,
    tell_nobody,
    version_identity,
)

_UNITS_VERSION = "3"  # of the names of units, and of what their files hold


def quantize_checkpoint(job: Job) -> ExpertReports:
    """Make the checkpoint; it appears as `job.out` when it is complete. Returns the reports of `gptq`.

    UsageError if `out` is not empty, the source is quantized already, or other work is in the way;
    ModelUnusable for a damaged source; Stopped, with finished units kept, if `should_stop` returns True.
    """
    config = read_config(job.source)
    check_job(job, config)
    adapter = read_adapters(job.lora, config)
    tables = dataclasses.replace(
        job.tables,
        source=_source_table(job, config, adapter),
        calibration={"method": job.recipe.method, "sequences": str(len(job.sequences))},
    )
    new_config = config.packed_by(tables)
    table = TokenTable.of(job.sequences, config) if job.calibrates else None
    if is_made(job.out):
        return _remove_work(job, config, tables)
    _tell_missing(job, config)
    with telling_full_disk(job.partial, "finished units are kept"), ExitStack() as stack:
        checkpoint = stack.enter_context(open_merged(job.source, config, adapter))
        for note in source_notes(config, checkpoint.accounts):
            job.note(note)
        files = CheckpointFiles(job.partial, _entries(checkpoint, new_config))
        fixed = _fixed(job, config, files)
        stages = make_stages(fixed, config.text)
        plan = _plan(job, config, files, checkpoint, stages, adapter)
        # Not before the checks: a refused job leaves nothing behind.
        fetches = job.hub is not None and job.hub.model is not None
        work = Work(job.partial, _identity(job, tables), job.resume, alone=fetches)
        stack.enter_context(closing(work))
        if job.hub is not None:
            job.hub.pin(work.folder)
        rehearse_rename(work.folder, job.out)
        _make_files(job, files, plan, work)
        _write_config(job, tables)
        copy_companions(job.source, checkpoint, job.partial, job.note)
        work.prepared()
        costs = _unit_costs(job, new_config, fixed, checkpoint)
        after = REPORT_SECONDS + audit_seconds(files.total_bytes)
        pace = _rehearsed_pace(job, new_config, costs, work.folder)
        if job.calibrates:
            left = {unit: cost for unit, cost in costs.items() if unit not in work.done}
            rest = "the rest" if len(left) < len(costs) else "all"
            minutes = math.ceil((pace.seconds(left) + after) / 60)
            job.on_note(f"tried an expert of each kind: about {minutes} min for {rest}")
        units = Units(work, files, costs, pace, after, job.on_unit, job.should_stop, job.on_others)
        agreement = _make_units(job, new_config, table, checkpoint, stages, units)
        reports = reports_of(new_config, work.done)
        if not units.take_check():
            job.on_note(f"another process checked the checkpoint and named it {job.out}")
            return reports
        contents = gather(job, config, tables, reports, agreement)
        write_numbers(job.partial, contents)
        units.tell("checking the new checkpoint", after)
        audited = audit(job.partial, job.source, files.total_bytes, job.note, plan.memory_bytes)
        units.tell("writing the report", REPORT_SECONDS)
        write_report(job.partial, contents, audited, job.source)
        work.finish(job.out)
    return reports


def _tell_missing(job: Job, config: ModelConfig) -> None:
    for note in ModelFiles(job.source, config).missing_notes():
        job.note(f"the checkpoint will lack it too: {note}")


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
    if _looks_through(job):
        units.share("parts of the source", weight_checks(checkpoint))
    source = FloatSource(checkpoint)
    # Opening checks that every tensor of the model exists once, in its shape.
    with (
        open_checkpoint(job.partial, read_config(job.partial)) as made,
        _fetching(job, checkpoint, stages, units) as finish_stage,
    ):
        calibration = None
        if table is not None:
            maker = PageMaker(source, config, job.recipe, units.files)
            gradients = None
            if job.recipe.by_answers:
                plain = dataclasses.replace(config, quantization=None)
                gradients = AnswerGradients.of(source, plain, job.sequences, units.work.folder)
            dense = DenseMaker(source, config.quantization, job.recipe, units.files)
            calibration = Calibration(
                job.sequences, config, table, source, made, units, maker, gradients, dense
            )
        for stage in stages:
            make = partial(_make_fixed, units.files, source, config.quantization, job.recipe_without_data)
            units.share("tensors", {entry.name: partial(make, entry) for entry in stage.fixed})
            if calibration is not None:
                calibration.run(stage.layer_id)
            finish_stage()
        return None if calibration is None else calibration.agreement()


def _make_fixed(
    files: CheckpointFiles,
    source: FloatSource,
    tables: QuantizationConfig,
    recipe: Recipe,
    entry: TensorEntry,
) -> None:
    files.write(entry.name, fixed_tensor(entry, source, tables, recipe))


def _looks_through(job: Job) -> bool:
    """Whether all weights are read before hours of work: without calibration the work itself takes minutes,
    and those of a source on the hub are not here."""
    return job.calibrates and (job.hub is None or job.hub.model is None)


def _unit_costs(
    job: Job, config: ModelConfig, fixed: Sequence[TensorEntry], checkpoint: Checkpoint
) -> dict[str, float]:
    """The cost of each unit of the work. config: with the new tables."""
    checks = check_costs(checkpoint) if _looks_through(job) else {}
    recipe = job.recipe if job.calibrates else job.recipe_without_data
    return checks | unit_costs(config, fixed, job.sequences, recipe)


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


def _source_table(job: Job, config: ModelConfig, adapter: Adapter | None) -> dict[str, str]:
    compression = config.compression
    more = {} if compression is None else {"quantized": f"{compression.formats} by {compression.method}"}
    if adapter is not None:
        more["adapters"] = adapters_identity(job.lora, adapter)
    if job.hub is None:
        return {"identity": source_identity(job.source), "name": job.source.name} | more
    return {"identity": job.hub.identity, "name": job.hub.repo} | more


def _plan(
    job: Job,
    config: ModelConfig,
    files: CheckpointFiles,
    checkpoint: Checkpoint,
    stages: Sequence[WorkStage],
    adapter: Adapter | None,
) -> Plan:
    """What the job takes but for time, if nothing of it is done. DoesNotFit as from `plan_run`."""
    added = 0 if adapter is None else adapter.num_bytes
    new_config = config.packed_by(job.tables)
    plan = plan_run(new_config, job.sequences, files, job.recipe, job.most_memory, adapter_bytes=added)
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
        **{name: text for name, text in tables.source.items() if name == "adapters"},
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
        "calibration": calibration_identity(job.sequences),
        "version": version_identity(job.recipe),
        "units": _UNITS_VERSION,
    }


def plan_checkpoint(job: Job) -> Plan:
    """Estimate what the job takes. Only a temporary page is made next to `job.out`, to measure the time.

    Raises what `quantize_checkpoint` raises for impossible arguments.
    """
    plan, costs = _plan_without_time(job)
    if job.hub is not None and plan.download is not None:
        rate = job.hub.measure_rate()
        download = dataclasses.replace(plan.download, seconds=plan.download.num_bytes / rate)
        plan = dataclasses.replace(plan, download=download)
    if not job.calibrates:
        return plan
    job.out.parent.mkdir(parents=True, exist_ok=True)
    new_config = read_config(job.source).packed_by(job.tables)
    pace = _rehearsed_pace(job, new_config, costs, job.out.parent)
    seconds = pace.seconds(costs) + REPORT_SECONDS + audit_seconds(plan.weight_bytes)
    return dataclasses.replace(plan, seconds=seconds)


def check_memory(job: Job) -> None:
    """DoesNotFit where the job needs more than `most_memory`; rehearses nothing, unlike `plan_checkpoint`."""
    _plan_without_time(job)


def _plan_without_time(job: Job) -> tuple[Plan, dict[str, float]]:
    """The plan, and the cost of each unit."""
    config = read_config(job.source)
    check_job(job, config)
    new_config = config.packed_by(job.tables)
    adapter = read_adapters(job.lora, config)
    with open_merged(job.source, config, adapter) as checkpoint:
        for note in source_notes(config, checkpoint.accounts):
            job.note(note)
        files = CheckpointFiles(job.partial, _entries(checkpoint, new_config))
        fixed = _fixed(job, config, files)
        plan = _plan(job, config, files, checkpoint, make_stages(fixed, config.text), adapter)
        return plan, _unit_costs(job, new_config, fixed, checkpoint)


def _rehearsed_pace(job: Job, config: ModelConfig, costs: Mapping[str, float], directory: Path) -> Pace:
    """What units of these costs take; pages that are made for it are in `directory` for a moment.

    config: with the new tables.
    """
    if not job.calibrates:
        return Pace(costs, {})
    # A folder of its own: other processes may rehearse at the same time.
    with tempfile.TemporaryDirectory(dir=directory, prefix="rehearsal.") as scratch:
        return Pace(costs, rehearse(config, job.recipe, Path(scratch), expert_tokens(config, job.sequences)))


def _copied_bytes(job: Job) -> int:
    measurements = 0 if job.statistics is None else job.statistics.stat().st_size
    return companion_bytes(job.source) + measurements


def checkpoint_bytes(checkpoint: Checkpoint, config: ModelConfig, tables: QuantizationConfig) -> int:
    """Exact bytes of all weight files with these tables, made from a checkpoint of this config."""
    entries = _entries(checkpoint, config.packed_by(tables))
    return files_bytes(entries)


def _entries(checkpoint: Checkpoint, new_config: ModelConfig) -> list[TensorEntry]:
    packed = PackedTensors(new_config)
    entries = [
        TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
        for name in checkpoint.names()
        if not packed.replaces(name)
    ]
    return entries + [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]


def _fixed(job: Job, config: ModelConfig, files: CheckpointFiles) -> list[TensorEntry]:
    """The tensors that need no calibration tokens, in the order of the files."""
    if not job.calibrates:
        return list(files.in_file_order())
    layers = range(config.text.num_hidden_layers)
    dense = {name for layer_id in layers for name in DenseTensors.of(job.tables, layer_id).names()}
    entries = files.in_file_order()
    return [entry for entry in entries if entry.name not in dense and not expert_pages(entry.name)]


def _make_files(job: Job, files: CheckpointFiles, plan: Plan, work: Work) -> None:
    """Create the files with their headers, once, and check that disk space for hidden states is left."""
    if not begin_files(work, files):
        return
    free = shutil.disk_usage(job.partial).free
    if free < plan.work_bytes:
        raise DoesNotFit(
            f"{plan.work_bytes} bytes are needed beside the weights in {job.partial}, {free} are free",
            "hidden states of the calibration tokens, and files of a source on the hub, lie there for a time",
            "free that much on the disk, name a directory on another disk, or use fewer samples",
        )
    work.record(FILES_UNIT)


def _write_config(job: Job, tables: QuantizationConfig) -> None:
    """Write config.json with the tables, and copy the measurements behind them."""
    raw = read_json_object(job.source / "config.json")
    raw["quantization_config"] = tables.to_json()
    with replaced(job.partial / "config.json") as new:
        new.write_text(json.dumps(raw, indent=2), encoding="utf-8")
    if job.statistics is not None:
        with replaced(job.partial / STATISTICS_FILE) as new:
            shutil.copyfile(job.statistics, new)
