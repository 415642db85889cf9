"""Quantizes experts layer by layer, on the tokens as the layers before make them.

Images and tokens are embedded; then each layer runs attention over all tokens, routes them, quantizes each
expert from its own tokens, and passes its outputs on. Small pages are made beside the others and do not
affect the next layer. Only one expert's weights are in memory; hidden states stay in files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ernie_local.checkpoint.packed import PackedTensors, page_formats
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import Bank, ExpertBank, ModelConfig
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.experts import packed_experts
from ernie_local.loading.build import build_layer
from ernie_local.model.decoder import DecoderLayer
from ernie_local.packing import pack_page
from ernie_local.packing.page import check_checksum
from ernie_quant.drift import Drift
from ernie_quant.expert import ExpertInputs, ExpertReport, RoutedExpert, quantize_expert
from ernie_quant.hessian import second_moments
from ernie_quant.job import Job
from ernie_quant.layer import Expert, NormedTokens, Routing, attend_layer, finish_layer, route_bank
from ernie_quant.source import FloatSource
from ernie_quant.tokens import RowFile, TokenTable, embed
from ernie_quant.work import Units, Work, expert_unit

_NEIGHBOURS_PER_COLUMN = 2  # tokens for the prior of down, for each of its columns
ExpertReports = dict[RoutedExpert, ExpertReport]


class Calibration:
    """Runs the calibration tokens through the new checkpoint and makes its experts on the way."""

    def __init__(
        self,
        job: Job,
        config: ModelConfig,
        table: TokenTable,
        source: FloatSource,
        made: Checkpoint,
        files: CheckpointFiles,
        work: Work,
        units: Units,
        drift: Drift,
    ) -> None:
        """config: with the new tables; table: of the job's sequences; made: what `files` writes, complete but
        for experts; drift: of the same sequences through the source.
        """
        assert config.quantization is not None
        self._job, self._config, self._tables = job, config, config.quantization
        self._source, self._made, self._files, self._units = source, made, files, units
        self._work, self._drift = work, drift
        self._packed = PackedTensors(config)
        self._table = table
        self.reports: ExpertReports = {}
        self.routing_agreement: dict[int, float] = {}

    def run(self) -> None:
        """Make all experts that are not done yet, and collect all reports."""
        first = 0
        while self._units.is_done(f"layer {first}"):
            self._collect_reports(first)
            first += 1
        if first == 0:
            self._embed()
        for layer_id in range(first, self._config.text.num_hidden_layers):
            self._make_layer(layer_id)

    def _states(self, layer_id: int) -> Path:
        """The file of the layer's input states."""
        return self._work.file(f"states.{layer_id}")

    def _open(self, path: Path, *, is_new: bool = False) -> RowFile:
        return RowFile(path, self._table.num_tokens, self._config.text.hidden_size, is_new=is_new)

    def _embed(self) -> None:
        unit_names = [f"sequence {number}" for number in range(len(self._job.sequences))]
        done = 0
        while done < len(unit_names) and self._units.is_done(unit_names[done]):
            done += 1
        with self._open(self._states(0), is_new=done == 0) as states:
            if done < len(unit_names):
                ends = embed(self._made, self._config, self._job.sequences, self._table, states, done)
                for unit, _ in zip(unit_names[done:], ends, strict=True):
                    states.sync()
                    self._units.finish(unit)
            self._drift.begin(states)

    def _make_layer(self, layer_id: int) -> None:
        layer = build_layer(self._made, self._config, layer_id)
        attended_path, routed_path = self._work.file("attended"), self._work.file("routed")
        with (
            self._open(self._states(layer_id)) as states,
            self._open(attended_path, is_new=True) as attended,
            self._open(routed_path, is_new=True) as routed,
        ):
            attend_layer(layer, self._config, self._table, states, attended)
            routings = {
                bank.name: self._make_bank(layer, layer_id, bank, attended, routed)
                for bank in (self._config.text.banks if layer.moe is not None else ())
            }
            agreement = self._drift.run_layer(layer_id, routings)
            finish_layer(layer, layer_id, attended, routed)
            routed.sync()
        routed_path.replace(self._states(layer_id + 1))
        self._units.finish(f"layer {layer_id}", {} if agreement is None else {"routing_agreement": agreement})
        self._states(layer_id).unlink()
        self._drift.leave_layer(layer_id)
        self._collect_agreement(layer_id)

    def _make_bank(
        self, layer: DecoderLayer, layer_id: int, bank: ExpertBank, attended: RowFile, routed: RowFile
    ) -> Routing:
        """Make the bank's experts, add their outputs to `routed`, and return the routing."""
        routing = route_bank(layer, self._table, attended, bank)
        moments: torch.Tensor | None = None
        for expert_id, places in enumerate(self._places(layer_id, bank.name)):
            unit = expert_unit(layer_id, bank.name, expert_id)
            rows, weights = routing.visitors(expert_id)
            tokens = NormedTokens(layer, attended, rows)
            if not self._units.is_done(unit):
                if moments is None:
                    everything = NormedTokens(layer, attended, routing.rows)
                    alike = torch.ones(len(everything))
                    moments = second_moments(everything, alike, self._config.text.hidden_size).matrix
                nearest = routing.neighbours(expert_id, _NEIGHBOURS_PER_COLUMN * bank.expert_size)
                neighbours = NormedTokens(layer, attended, nearest)
                pages, report = quantize_expert(
                    self._source.expert(layer_id, bank.name, expert_id),
                    ExpertInputs(tokens, weights, neighbours, moments),
                    self._job.recipe,
                    *(page_formats(name.rpartition(".")[2]) for name, _ in places),
                )
                for (name, row), page in zip(places, pages, strict=True):
                    self._files.write(name, [pack_page(page)], row)
                self._units.finish(unit, report.values())
            self.reports[layer_id, bank.name, expert_id] = ExpertReport.of_values(self._units.report(unit))
            # Read from the file, so that a resumed run computes with the same bytes.
            name, row = places[0]
            made = self._files.read(name, row)
            check_checksum(made, f"{self._files.directory}: page {row} of {name}")
            for part_rows, outputs in tokens.outputs(_packed_expert(made[None]), weights):
                routed.add(part_rows, outputs)
        return routing

    def _places(self, layer_id: int, bank: Bank) -> list[tuple[tuple[str, int], ...]]:
        """Tensor and row of each expert's page, and of its small page if it has one."""
        kinds = (False, True) if self._tables.small_experts else (False,)
        located = (self._packed.locate_experts(layer_id, bank, small=small) for small in kinds)
        return list(zip(*located, strict=True))

    def _collect_agreement(self, layer_id: int) -> None:
        agreement = self._units.report(f"layer {layer_id}").get("routing_agreement")
        if agreement is not None:
            self.routing_agreement[layer_id] = agreement

    def _collect_reports(self, layer_id: int) -> None:
        self._collect_agreement(layer_id)
        for bank in self._config.text.banks if self._config.text.moe_layers[layer_id] else ():
            for expert_id in range(bank.num_experts):
                unit = expert_unit(layer_id, bank.name, expert_id)
                self.reports[layer_id, bank.name, expert_id] = ExpertReport.of_values(
                    self._units.report(unit)
                )


def _packed_expert(page: torch.Tensor) -> Expert:
    """The expert that the runtime computes from its page, (1, page_bytes)."""
    return lambda tokens, weights: packed_experts(
        ExpertsCall(tokens, page, torch.zeros(len(tokens), 1, dtype=torch.int64), weights)
    )
