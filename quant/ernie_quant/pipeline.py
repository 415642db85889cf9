"""A float checkpoint to one in our own format, unit by unit, resumable after every one of them.

Owns the order of the work. First everything but calibrated experts, then layer by layer: attention over all
calibration tokens, routing, each expert from its own tokens, and its output on to the next layer. Only one
expert's weights are in memory. See quantizing and layers' arithmetic in recipe.py, expert.py and layer.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import closing

import torch

from ernie_local.checkpoint.packed import PackedTensors, known_format, page_formats
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import ModelConfig, QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit, ModelUnusable, Stopped
from ernie_local.kernels.ops import packed_experts
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.moe import BANKS, Bank
from ernie_local.packing import ExpertPage, pack_matrix, pack_page
from ernie_quant.expert import ExpertInputs, ExpertReport, ExpertWeights, quantize_expert
from ernie_quant.hessian import second_moments
from ernie_quant.identity import (
    calibration_identity,
    settings_identity,
    source_identity,
    version_identity,
)
from ernie_quant.job import Job, check_job
from ernie_quant.layer import Routing, add_mlp, attend, build_layer, normed_rows, route
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.source import Source
from ernie_quant.token_table import TokenTable, embed
from ernie_quant.work import Work

_WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json")
_NEIGHBOURS_PER_COLUMN = 2  # of down: tokens that its prior is made from
ExpertReports = dict[tuple[int, Bank, int], ExpertReport]


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
    identity = {
        "source": tables.source["identity"],
        "settings": settings_identity(job.tables, job.recipe),
        "calibration": calibration_identity(job.sequences),
        "version": version_identity(),
    }
    with (
        closing(Work(job.partial, identity, job.resume)) as work,
        open_checkpoint(job.source, config) as checkpoint,
    ):
        packed = PackedTensors(dataclasses.replace(config, quantization=tables))
        entries = [
            TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
            for name in checkpoint.names()
            if not packed.replaces(name)
        ]
        entries += [TensorEntry(name, torch.uint8, shape) for name, shape in packed.shapes.items()]
        files = CheckpointFiles(job.partial, entries)
        maker = _Maker(job, config, tables, packed, Source(checkpoint), files, work)
        maker.make_files()
        maker.make_fixed_tensors()
        if job.recipe.method == "gptq" and tables.experts:
            maker.make_layers()
        _write_rest(job, tables)
        with open_checkpoint(job.partial, read_config(job.partial)):
            pass  # every tensor of the model is there once, in its shape
        reports = maker.reports
        work.finish(job.out)
    return reports


class _Maker:
    """Makes what is not made yet. Units: a tensor's name, or `expert LAYER.BANK.ID`, or `layer ID`."""

    def __init__(
        self,
        job: Job,
        config: ModelConfig,
        tables: QuantizationConfig,
        packed: PackedTensors,
        source: Source,
        files: CheckpointFiles,
        work: Work,
    ) -> None:
        self._job, self._config, self._tables, self._packed = job, config, tables, packed
        self._source, self._files, self._work = source, files, work
        self._calibrates = job.recipe.method == "gptq"
        num_experts = sum(map(len, tables.experts.values()))
        fixed = [entry for entry in files.in_file_order() if not self._is_calibrated(entry.name)]
        self._fixed = fixed
        self._num_units = len(fixed) + (num_experts + config.text.num_hidden_layers) * self._calibrates
        self.reports: ExpertReports = {}

    def make_files(self) -> None:
        """Headers and room for everything, once."""
        if "files" not in self._work.done:
            try:
                self._files.create()
            except OSError as error:
                raise DoesNotFit(
                    f"{self._files.total_bytes} bytes for the weights cannot be had in {self._job.partial}, "
                    f"{shutil.disk_usage(self._job.partial).free} are free",
                    error.strerror or str(error),
                    "free that much on the disk, or name a directory on another one",
                ) from error
            self._files.sync()
            self._work.record("files")

    def make_fixed_tensors(self) -> None:
        """All that needs no calibration tokens."""
        for entry in self._fixed:
            if entry.name not in self._work.done:
                self._make_fixed(entry)
                self._finish(entry.name)

    def make_layers(self) -> None:
        """Calibrated experts, layer by layer, on what the layers before make of the tokens."""
        table = embed(self._source.checkpoint, self._config, self._job.sequences)
        first = 0
        states = self._work.load_states()
        if states is not None:
            first, table.hidden = states
        for layer_id, has_experts in enumerate(self._config.text.moe_layers):
            if layer_id < first:
                self._collect_reports(layer_id, has_experts)
                continue
            layer = self._layer(layer_id)
            attend(layer, self._config, table)
            routed = None
            if has_experts:
                routed = torch.zeros_like(table.hidden)
                for bank in BANKS:
                    self._make_bank(layer, layer_id, bank, table, routed)
            add_mlp(layer, table, routed)
            if not bool(table.hidden.isfinite().all()):
                raise ModelUnusable(
                    f"layer {layer_id} turns calibration tokens into numbers that are not finite",
                    "a weight of it is damaged, or overflows",
                    "verify the source checkpoint",
                )
            self._work.save_states(layer_id + 1, table.hidden)
            self._finish(f"layer {layer_id}")

    def _is_calibrated(self, name: str) -> bool:
        return self._calibrates and name.startswith("experts.")

    def _make_fixed(self, entry: TensorEntry) -> None:
        name, _, format_name = entry.name.rpartition(".")
        if entry.dtype != torch.uint8:
            self._files.write(entry.name, [self._source.plain(entry.name)])
        elif name.startswith("experts."):
            _, layer_text, bank = name.split(".")
            key = (int(layer_text), _bank(bank))
            pages = (
                self._plain_page(self._source.expert(*key, expert_id), format_name)
                for expert_id, expert_format in enumerate(self._tables.experts[key])
                if expert_format == format_name
            )
            self._files.write(entry.name, pages)
        elif name in self._tables.gated_mlps:
            self._files.write(entry.name, [self._plain_page(self._source.gated_mlp(name), format_name)])
        else:
            matrix = quantize_matrix(
                self._source.matrix(name), known_format(format_name), self._without_data()
            )
            self._files.write(entry.name, [pack_matrix(matrix)])

    def _plain_page(self, weights: ExpertWeights, page_format: str) -> torch.Tensor:
        gate_up, down = page_formats(page_format)
        recipe = self._without_data()
        return pack_page(
            ExpertPage(
                quantize_matrix(weights.gate, gate_up, recipe),
                quantize_matrix(weights.up, gate_up, recipe),
                quantize_matrix(weights.down, down, recipe),
            )
        )

    def _without_data(self) -> Recipe:
        """How weights are quantized for which no second moments are taken."""
        return Recipe("clip") if self._calibrates else self._job.recipe

    def _layer(self, layer_id: int) -> DecoderLayer:
        prefix = f"layers.{layer_id}."
        names = {**self._tables.matrices, **self._tables.gated_mlps}
        packed = {
            name: self._read_whole(f"{name}.{format_name}")
            for name, format_name in names.items()
            if name.startswith(prefix)
        }
        return build_layer(
            self._source.checkpoint, self._config, layer_id, self._tables, self._packed, packed
        )

    def _read_whole(self, name: str) -> torch.Tensor:
        shape = self._packed.shapes[name]
        return self._files.read(name).view(shape)

    def _make_bank(
        self, layer: DecoderLayer, layer_id: int, bank: Bank, table: TokenTable, routed: torch.Tensor
    ) -> None:
        routing = route(layer, table, bank)
        moments: torch.Tensor | None = None
        places = self._packed.locate_experts(layer_id, bank)
        for expert_id, (name, row) in enumerate(places):
            unit = f"expert {layer_id}.{bank}.{expert_id}"
            rows, weights = routing.visitors(expert_id)
            tokens = normed_rows(layer, table, rows)
            if unit not in self._work.done:
                if moments is None:
                    moments = second_moments(normed_rows(layer, table, routing.rows)).matrix
                inputs = ExpertInputs(
                    tokens, weights, self._neighbours(layer, table, routing, expert_id, bank), moments
                )
                page_format = self._tables.experts[layer_id, bank][expert_id]
                page, report = quantize_expert(
                    self._source.expert(layer_id, bank, expert_id),
                    inputs,
                    *page_formats(page_format),
                    self._job.recipe,
                )
                self._files.write(name, [pack_page(page)], row)
                self._finish(unit, report)
            self.reports[layer_id, bank, expert_id] = self._report(unit)
            if len(rows):
                only = torch.zeros(len(rows), 1, dtype=torch.int64)
                # From the file, so that a resumed run computes with the very same bytes.
                page_bytes = self._files.read(name, row)[None]
                routed.index_add_(0, rows, packed_experts(tokens, page_bytes, only, weights[:, None]))

    def _neighbours(
        self, layer: DecoderLayer, table: TokenTable, routing: Routing, expert_id: int, bank: Bank
    ) -> torch.Tensor:
        text = self._config.text
        inner_size = text.text_expert_size if bank == "text" else text.vision_expert_size
        rows = routing.neighbours(expert_id, _NEIGHBOURS_PER_COLUMN * inner_size)
        return normed_rows(layer, table, rows)

    def _collect_reports(self, layer_id: int, has_experts: bool) -> None:
        for bank in BANKS if has_experts else ():
            for expert_id in range(self._config.text.num_experts):
                unit = f"expert {layer_id}.{bank}.{expert_id}"
                self.reports[layer_id, bank, expert_id] = self._report(unit)

    def _report(self, unit: str) -> ExpertReport:
        values = self._work.done[unit]
        return ExpertReport(
            int(values["tokens"]),
            values["effective_tokens"],
            values["gate_up_error"],
            values["down_error"],
        )

    def _finish(self, unit: str, report: ExpertReport | None = None) -> None:
        self._files.sync()
        self._work.record(unit, None if report is None else dataclasses.asdict(report))
        num_done = len(self._work.done) - 1  # `files` is no unit that anybody waits for
        if self._job.on_unit is not None:
            self._job.on_unit(unit, num_done, self._num_units)
        if self._job.should_stop is not None and self._job.should_stop():
            raise Stopped(
                f"stopped after {num_done} of {self._num_units} units",
                f"a stop was asked for; what is done lies in {self._job.partial}",
                "give the same command again to go on",
            )


def _bank(name: str) -> Bank:
    return "text" if name == "text" else "vision"


def _write_rest(job: Job, tables: QuantizationConfig) -> None:
    """config.json with the tables, and every file of the source beside config and weights."""
    raw = json.loads((job.source / "config.json").read_text(encoding="utf-8"))
    raw["quantization_config"] = tables.to_json()
    (job.partial / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    for path in job.source.iterdir():
        if path.is_file() and path.name != "config.json" and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copy(path, job.partial / path.name)
