"""Exports a checkpoint: disk space, weights, small files, audit.

A unit of the work is a layer, or all that lies outside of layers. The checkpoint gets its name when every
tensor was read back and compared with the source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ernie_local.adapters.merged import MergedCheckpoint
from ernie_local.checkpoint.files import FileHash, model_files, write_hashes
from ernie_local.checkpoint.index import compression_notes
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import UsageError
from ernie_local.files import open_plain, replaced
from ernie_local.model_files import ModelFiles
from ernie_local.strict_json import read_json_object
from ernie_quant.audit import audit
from ernie_quant.calibration import Calibration
from ernie_quant.companions import companion_bytes, copy_companions
from ernie_quant.engine_files import write_engine_files
from ernie_quant.export.calibrated import CompressedMaker
from ernie_quant.export.card import CardKind, describe_layout, export_card
from ernie_quant.export.flat_config import MTP_LAYERS, USUAL_NORM_MIN, flat_config
from ernie_quant.export.job import ExportJob
from ernie_quant.export.loader_names import check_names
from ernie_quant.export.parallel import check_parallel, gpu_shares
from ernie_quant.export.pieces import ExportPiece, check_pieces, check_same_bits, export_pieces
from ernie_quant.export.weights import SourceWeights
from ernie_quant.pace import REPORT_SECONDS, Pace, audit_seconds
from ernie_quant.place import check_out, check_room, is_made, rehearse_rename, telling_full_disk
from ernie_quant.plan import unit_costs
from ernie_quant.recipe import Recipe
from ernie_quant.source import FloatSource
from ernie_quant.source_check import source_notes
from ernie_quant.tokens import TokenTable
from ernie_quant.units import Units
from ernie_quant.work import (
    FILES_UNIT,
    Work,
    begin_files,
    calibration_identity,
    check_resume,
    source_identity,
    version_identity,
)

_SMALL_BYTES = 1 << 20  # of README.md, hashes.json, the journal and the code for engines, generously
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """Weights of the new checkpoint, all of which were read back and are what they were made from.

    exact: with the very numbers of the source; rounded: from plain weights of more digits; unpacked:
    dequantized and rounded; merged: with an adapter's part in them; compressed: to fewer bits. num_bytes: of
    the weight files.
    """

    tensors: int
    exact: int
    rounded: int
    unpacked: int
    merged: int
    compressed: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Export:
    """A job with what follows from its source. config: of the new checkpoint, as if it were plain."""

    job: ExportJob
    config: ModelConfig
    source: SourceWeights
    pieces: list[ExportPiece]
    files: CheckpointFiles

    @classmethod
    def of(cls, job: ExportJob, checkpoint: Checkpoint, config: ModelConfig) -> _Export:
        new_config = _new_config(config, checkpoint)
        pieces = export_pieces(new_config, job.layout, "rtn" if job.method == "rtn" else "clip")
        files = CheckpointFiles(job.partial, [entry for piece in pieces for entry in piece.entries()])
        return cls(job, new_config, SourceWeights(checkpoint, config, job.adapter), pieces, files)

    def counts(self) -> ExportCounts:
        kinds = Counter[str]()
        for piece in self.pieces:
            kind = self.source.kind(piece.tensor.parts[0].name, piece.tensor.dtype)
            kinds["compressed" if piece.form is not None else kind] += 1
        names = ("exact", "rounded", "unpacked", "merged", "compressed")
        found = {name: kinds[name] for name in names}
        return ExportCounts(tensors=len(self.pieces), num_bytes=self.files.total_bytes, **found)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What a job needs before anything is written. config: of the source; num_bytes: of the checkpoint."""

    config: ModelConfig
    num_bytes: int

    def disk_bytes(self, job: ExportJob) -> int:
        """Bytes that the job, which may have got its sequences since, takes on the disk; DoesNotFit without
        room for them."""
        num_bytes = self.num_bytes + _state_bytes(job, self.config)
        if not job.partial.exists():
            check_room(job.out, num_bytes + _SMALL_BYTES)
        return num_bytes


def plan_export(job: ExportJob) -> ExportPlan:
    """UsageError for an impossible job, ModelUnusable for a source that is not whole, DoesNotFit without
    room."""
    config = _check(job)
    with open_checkpoint(job.source, config) as checkpoint:
        export = _Export.of(job, checkpoint, config)
    if job.tensor_parallel is not None:
        check_parallel(export.config, job.layout, job.tensor_parallel)
    if job.target == "vllm":
        entries = export.files.in_file_order()
        check_names((entry.name for entry in entries), export.config, job.layout)
    plan = ExportPlan(config, export.files.total_bytes + companion_bytes(job.source))
    plan.disk_bytes(job)
    return plan


def _state_bytes(job: ExportJob, config: ModelConfig) -> int:
    """Of the files with hidden states of the calibration tokens: three, and three for the exact path."""
    num_tokens = sum(len(sequence.token_ids) for sequence in job.sequences)
    return 6 * 4 * num_tokens * config.text.hidden_size if job.calibrates else 0


def write_export(job: ExportJob, plan: ExportPlan | None = None) -> ExportCounts:
    """Write the checkpoint; it appears as `job.out` when it is complete. plan: of this job, if there is one.

    UsageError if `out` is not empty or other work is in the way; ModelUnusable for a damaged source;
    DoesNotFit on a full disk; Stopped, with finished units kept, if `should_stop` returns True.
    """
    config = (plan or plan_export(job)).config
    _tell_notes(job, config)
    with telling_full_disk(job.partial, "finished layers are kept"), ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(job.source, config))
        notes = compression_notes if job.layout.experts is None else source_notes
        for note in notes(config, checkpoint.accounts):
            job.on_note(note)
        export = _Export.of(job, checkpoint, config)
        if is_made(job.out):
            Work(job.out, _identity(job)).remove()
            job.on_note(f"{job.out} was complete: only the files of the work were left, and are removed")
            return export.counts()
        work = stack.enter_context(closing(Work(job.partial, _identity(job), job.resume)))
        rehearse_rename(work.folder, job.out)
        if begin_files(work, export.files):
            # Once: they are written in steps, and who joins must not do that while another one hashes them.
            _write_small_files(export, checkpoint)
            work.record(FILES_UNIT)
        work.prepared()
        if _write_weights(export, work):
            work.finish(job.out)
        else:
            job.on_note(f"another process checked the checkpoint and named it {job.out}")
        return export.counts()


def _check(job: ExportJob) -> ModelConfig:
    config = read_config(job.source)
    check_out(job.out, job.source)
    if not is_made(job.out):
        check_resume(job.partial, job.resume)
    is_packed = config.quantization is not None
    if is_packed and job.layout.experts is not None:
        raise UsageError(
            f"{job.source_name} is quantized already",
            "its groups cannot be written as compressed-tensors has them, and quantizing what is left of the "
            "weights again would add up the errors of both",
            "start from the bfloat16 checkpoint, or add --format bf16",
        )
    if job.calibrates and not config.text.banks:
        raise UsageError(
            f"--method gptq, and {job.source_name} has 0 routed experts",
            "only these are calibrated",
            "--method clip",
        )
    if job.target == "vllm":
        _check_engines(job, config)
    return config


def _check_engines(job: ExportJob, config: ModelConfig) -> None:
    """UsageError for a model that engines would compute otherwise, ModelUnusable for one without words."""
    text = config.text
    if config.reads_images and len(text.banks) != 2:
        raise UsageError(
            f"{job.source_name} has {len(text.banks)} banks of experts, exported for vLLM are 2",
            "the loader whose names are checked is that of ERNIE-4.5-VL",
            "use --for hf; vLLM reads the published checkpoint of this model as it is",
        )
    if text.banks and text.moe_norm_min != USUAL_NORM_MIN:
        raise UsageError(
            f"moe_norm_min of {job.source_name} is {text.moe_norm_min:g}, that of engines {USUAL_NORM_MIN:g}",
            "they do not read this key, and would weigh experts otherwise",
            "use --for hf",
        )
    # It is read once more from the new checkpoint, when hours may have passed.
    _ = ModelFiles(job.source, config).tokenizer


def _tell_notes(job: ExportJob, config: ModelConfig) -> None:
    for note in ModelFiles(job.source, config).missing_notes():
        job.on_note(f"the checkpoint will lack it too: {note}")
    if config.quantization is not None and config.quantization.small_experts:
        job.on_note("small pages are left out: each expert is made from its other page")
    if not config.reads_images and read_json_object(job.source / "config.json").get(MTP_LAYERS):
        job.on_note("layers that predict the tokens after the next one (MTP) are left out")
    if config.quantization is not None and job.target == "vllm":
        job.on_note("the source is quantized: its weights are dequantized, and stay as they were rounded")


def _identity(job: ExportJob) -> dict[str, str]:
    settings = f"{job.target} {job.layout} {job.method}, adapter {job.adapter_identity or 'none'}"
    calibration = calibration_identity(job.sequences if job.calibrates else ())
    return {
        "calibration": calibration,
        "source": source_identity(job.source),
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
        "version": version_identity(),
    }


def _new_config(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """That of a plain checkpoint. A tied head that has a packed copy of its own is no longer tied."""
    has_own_head = any(name.startswith("lm_head.") for name in checkpoint.packed)
    is_tied = config.text.tie_word_embeddings and not has_own_head
    text = dataclasses.replace(config.text, tie_word_embeddings=is_tied)
    return dataclasses.replace(config.packed_by(None), text=text)


def _write_small_files(export: _Export, checkpoint: Checkpoint) -> None:
    """Write config.json, what is copied, what engines need, and README.md."""
    job, out = export.job, export.job.partial
    raw = flat_config(export.config, read_json_object(job.source / "config.json"))
    tables = job.layout.quantization_config(export.config.text)
    if tables is not None:
        raw["quantization_config"] = tables
    _write_text(out / "config.json", json.dumps(raw, indent=2))
    copy_companions(job.source, checkpoint, out, job.on_note)
    files = ModelFiles(job.source, read_config(job.source))
    if job.target == "vllm":
        write_engine_files(out, files.image_processor if export.config.reads_images else None)
    kind = CardKind(
        reads_images=export.config.reads_images,
        has_experts=bool(export.config.text.banks),
        thinks=files.template_name != "text",
    )
    card = job.source / _CARD
    source_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    shares = gpu_shares(export.config, job.layout, export.files.in_file_order())
    _write_text(
        out / _CARD,
        export_card(
            job.source_name,
            describe_layout(job.layout),
            _how(export),
            source_card,
            kind,
            shares if job.target == "vllm" else (),
        ),
    )


def _how(export: _Export) -> str:
    counts = export.counts()
    told = [
        f"{counts.exact:,} of {counts.tensors:,} weights are the very numbers of the source",
        f"{counts.rounded:,} are rounded to bfloat16" * bool(counts.rounded),
        f"{counts.unpacked:,} are dequantized from its packed form" * bool(counts.unpacked),
        f"{counts.merged:,} have an adapter merged in" * bool(counts.merged),
        f"{counts.compressed:,} are compressed ({export.job.method})" * bool(counts.compressed),
    ]
    return ", ".join(filter(None, told)) + "."


def _write_text(path: Path, text: str) -> None:
    with replaced(path) as new:
        new.write_text(text, encoding="utf-8")


def _write_weights(export: _Export, work: Work) -> bool:
    """Have all units written, and check the whole; False where another process checked it."""
    job, files = export.job, export.files
    stages: dict[str, list[ExportPiece]] = {}
    for piece in export.pieces:
        if not (job.calibrates and piece.is_expert):
            stages.setdefault(piece.stage, []).append(piece)
    costs = {
        stage: float(sum(entry.num_bytes for piece in pieces for entry in piece.entries()))
        for stage, pieces in stages.items()
    }
    if job.calibrates:
        costs |= unit_costs(export.config, (), job.sequences, Recipe())
    checking = audit_seconds(2 * files.total_bytes)
    pace = Pace(costs, {})
    units = Units(work, files, costs, pace, REPORT_SECONDS + checking, job.on_unit, job.should_stop)
    units.share("parts", {stage: partial(_write_stage, export, stages[stage]) for stage in stages})
    if job.calibrates:
        _calibrate(export, units)
    if not units.take_check():
        return False
    units.tell("comparing every weight with the source", checking)
    if job.layout.experts is None:
        _compare_plain(export)
        audit(job.partial, job.source, files.total_bytes, job.on_note)
    else:
        check_pieces(job.partial, export.pieces, export.source)
        write_hashes(job.partial, {name: _hash(job.partial / name) for name in model_files(job.partial)})
    return True


def _write_stage(export: _Export, pieces: Sequence[ExportPiece]) -> None:
    for piece in pieces:
        for name, contents in piece.contents(export.source):
            export.files.write(name, contents)


def _calibrate(export: _Export, units: Units) -> None:
    """Make all experts from calibration tokens, which run through the source's other weights."""
    job, accounts = export.job, export.source.checkpoint.accounts
    checkpoint = Checkpoint(accounts) if job.adapter is None else MergedCheckpoint(accounts, job.adapter)
    with checkpoint:
        source = FloatSource(checkpoint)
        pieces = {piece.tensor.parts[0].name: piece for piece in export.pieces if piece.is_expert}
        maker = CompressedMaker(source, pieces, units.files)
        table = TokenTable.of(job.sequences, export.config)
        calibration = Calibration(job.sequences, export.config, table, source, checkpoint, units, maker)
        for layer_id in (None, *range(export.config.text.num_hidden_layers)):
            calibration.run(layer_id)


def _compare_plain(export: _Export) -> None:
    """Read every weight under our names, as the runtime does; ModelUnusable for one that is another.

    The second copy of a tied head is compared by the reader.
    """
    dtypes = {part.name: piece.tensor.dtype for piece in export.pieces for part in piece.tensor.parts}
    with open_checkpoint(export.job.partial, read_config(export.job.partial)) as made:
        for name in made.names():
            start, stored = 0, made.accounts.sources[name]
            for wanted in export.source.blocks(name, dtypes[name]):
                found = torch.empty_like(wanted)
                if stored.transposed:  # of routers, each of which is one block
                    made.read(name, found)
                else:
                    made.read_rows(name, start, found)
                check_same_bits(stored.stored, found, wanted, start)
                start += len(wanted)


def _hash(path: Path) -> FileHash:
    with open_plain(path) as file:
        return FileHash(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
