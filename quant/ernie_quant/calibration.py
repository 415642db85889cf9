"""Quantizes experts layer by layer, on the tokens as the layers before make them.

Images and tokens are embedded; then each layer runs attention over all tokens, routes them, quantizes each
expert from its own tokens, and passes its outputs on. Small pages are made beside the others and do not
affect the next layer. Only one expert's weights are in memory; hidden states stay in files. The first tokens
also go through the exact layers of the source, which shows how routing drifts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec
import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.packed import PackedTensors, page_formats
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import Bank, ExpertBank, ModelConfig
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.experts import packed_experts
from ernie_local.loading.build import build_layer
from ernie_local.model.decoder import DecoderLayer
from ernie_local.packing import pack_page
from ernie_local.packing.page import check_checksum
from ernie_quant.expert import ExpertInputs, ExpertReport, RoutedExpert, quantize_expert
from ernie_quant.hessian import second_moments
from ernie_quant.job import Job
from ernie_quant.layer import (
    Expert,
    NormedTokens,
    Routing,
    StateFiles,
    attend_layer,
    finish_layer,
    route_bank,
)
from ernie_quant.source import FloatSource
from ernie_quant.tokens import RowFile, TokenTable, embed
from ernie_quant.work import Units, expert_unit

NEIGHBOURS_PER_COLUMN = 2  # tokens for the prior of down, for each of its columns
MOST_DRIFT_TOKENS = 2048  # on the exact path, but at least one whole sequence
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
        units: Units,
    ) -> None:
        """config: with the new tables; table: of the job's sequences; made: the new checkpoint so far."""
        assert config.quantization is not None
        self._job, self._config, self._tables = job, config, config.quantization
        self._source, self._made, self._units = source, made, units
        self._packed = PackedTensors(config)
        self._table = table
        self._files = StateFiles(units.work.folder, "states", table.num_tokens, config.text.hidden_size)
        first = TokenTable.of(_first_sequences(job.sequences), config)
        exact_files = StateFiles(units.work.folder, "exact", first.num_tokens, config.text.hidden_size)
        exact_config = dataclasses.replace(config, quantization=None)
        self._exact = _ExactPath(source, exact_config, first, exact_files)

    def run(self, layer_id: int | None) -> None:
        """Make all experts of a layer that are not done yet, after those of the layers before.

        None embeds the tokens, which comes first.
        """
        if layer_id is None:
            if "layer 0" not in self._units.done:
                self._embed()
        elif f"layer {layer_id}" not in self._units.done:
            self._make_layer(layer_id)

    def agreement(self) -> dict[int, float]:
        """For each layer with experts, the share of routing choices that equal the source's."""
        return {
            layer_id: self._units.done[f"layer {layer_id}"]["routing_agreement"]
            for layer_id, has_experts in enumerate(self._config.text.moe_layers)
            if has_experts
        }

    def _embed(self) -> None:
        unit_names = [f"sequence {number}" for number in range(len(self._job.sequences))]
        first = sum(unit in self._units.done for unit in unit_names)
        with self._files.open(0, is_new=first == 0) as states:
            if first < len(unit_names):
                ends = embed(self._made, self._config, self._job.sequences, self._table, states, first)
                for unit, _ in zip(unit_names[first:], ends, strict=True):
                    states.sync()
                    self._units.finish(unit)
            self._exact.begin(states)

    def _make_layer(self, layer_id: int) -> None:
        layer = build_layer(self._made, self._config, layer_id)
        with self._files.layer(layer_id) as (states, attended, routed):
            attend_layer(layer, self._config, self._table, states, attended)
            self._units.count_for(f"layer {layer_id}")
            routings = {
                bank.name: self._make_bank(layer, layer_id, bank, attended, routed)
                for bank in (self._config.text.banks if layer.moe is not None else ())
            }
            agreement = self._exact.run_layer(layer_id, routings)
            finish_layer(layer, layer_id, attended, routed)
        self._units.finish(f"layer {layer_id}", {} if agreement is None else {"routing_agreement": agreement})
        self._files.delete(layer_id)
        self._exact.files.delete(layer_id)

    def _make_bank(
        self, layer: DecoderLayer, layer_id: int, bank: ExpertBank, attended: RowFile, routed: RowFile
    ) -> Routing:
        """Make the bank's experts, add their outputs to `routed`, and return the routing."""
        routing = route_bank(layer, self._table, attended, bank)
        self._units.count_for(f"layer {layer_id}")
        moments: torch.Tensor | None = None
        for expert_id, places in enumerate(self._places(layer_id, bank.name)):
            unit = expert_unit(layer_id, bank.name, expert_id)
            rows, weights = routing.visitors(expert_id)
            tokens = NormedTokens(layer, attended, rows)
            if unit not in self._units.done:
                if moments is None:
                    everything = NormedTokens(layer, attended, routing.rows)
                    alike = torch.ones(len(everything))
                    moments = second_moments(everything, alike, self._config.text.hidden_size).matrix
                    self._units.count_for(f"layer {layer_id}")
                nearest = routing.neighbours(expert_id, NEIGHBOURS_PER_COLUMN * bank.expert_size)
                neighbours = NormedTokens(layer, attended, nearest)
                pages, report = quantize_expert(
                    self._source.expert(layer_id, bank.name, expert_id),
                    ExpertInputs(tokens, weights, neighbours, len(neighbours), moments),
                    self._job.recipe,
                    *(page_formats(name.rpartition(".")[2]) for name, _ in places),
                )
                for (name, row), page in zip(places, pages, strict=True):
                    self._units.files.write(name, [pack_page(page)], row)
                self._units.finish(unit, msgspec.to_builtins(report))
            # Read from the file, so that a resumed run computes with the same bytes.
            name, row = places[0]
            made = self._units.files.read(name, row)
            check_checksum(made, f"{self._units.files.directory}: page {row} of {name}")
            tokens.add_outputs(packed_expert(made[None]), weights, routed)
        return routing

    def _places(self, layer_id: int, bank: Bank) -> list[tuple[tuple[str, int], ...]]:
        """Tensor and row of each expert's page, and of its small page if it has one."""
        kinds = (False, True) if self._tables.small_experts else (False,)
        located = (self._packed.locate_experts(layer_id, bank, small=small) for small in kinds)
        return list(zip(*located, strict=True))


def reports_of(config: ModelConfig, done: Mapping[str, Mapping[str, float]]) -> ExpertReports:
    """The reports of all experts that the journal has. done: its units."""
    return {
        (layer_id, bank.name, expert_id): msgspec.convert(done[unit], ExpertReport)
        for layer_id, bank in config.text.layer_banks()
        for expert_id in range(bank.num_experts)
        if (unit := expert_unit(layer_id, bank.name, expert_id)) in done
    }


def packed_expert(page: torch.Tensor) -> Expert:
    """The expert that the runtime computes from its page, (1, page_bytes)."""
    return lambda tokens, weights: packed_experts(
        ExpertsCall(tokens, page, torch.zeros(len(tokens), 1, dtype=torch.int64), weights)
    )


def _first_sequences(sequences: Sequence[EncodedSample]) -> Sequence[EncodedSample]:
    """Of at most MOST_DRIFT_TOKENS together, but at least one."""
    ends = accumulate(len(sequence.token_ids) for sequence in sequences)
    return sequences[: max(1, sum(end <= MOST_DRIFT_TOKENS for end in ends))]


@dataclass(frozen=True, slots=True)
class _ExactPath:
    """The first sequences on their way through the exact layers, behind the new embedding and tower.

    config: of the source; table: of these sequences.
    """

    source: FloatSource
    config: ModelConfig
    table: TokenTable
    files: StateFiles

    def begin(self, states: RowFile) -> None:
        """Copy the first layer's input states from those of the new checkpoint."""
        with self.files.open(0, is_new=True) as exact:
            exact.write(slice(None), states.read(slice(0, self.table.num_tokens)))
            exact.sync()

    def run_layer(self, layer_id: int, found: Mapping[Bank, Routing]) -> float | None:
        """Run the next layer; the share of choices that `found`, the new checkpoint, makes too.

        None for a layer without experts. May be repeated for the same layer until its inputs are deleted.
        """
        layer = build_layer(self.source.checkpoint, self.config, layer_id)
        agreed = total = 0
        with self.files.layer(layer_id) as (states, attended, routed):
            attend_layer(layer, self.config, self.table, states, attended)
            for bank in self.config.text.banks if layer.moe is not None else ():
                routing = route_bank(layer, self.table, attended, bank)
                for expert_id in range(bank.num_experts):
                    rows, weights = routing.visitors(expert_id)
                    if rows.numel():
                        expert = self.source.expert(layer_id, bank.name, expert_id)
                        tokens = NormedTokens(layer, attended, rows)
                        tokens.add_outputs(expert.weighted_outputs, weights, routed)
                others = found[bank.name].ids[: len(routing.ids)]  # rows ascend, and these are the first
                agreed += int((routing.ids[:, :, None] == others[:, None, :]).any(-1).sum())
                total += routing.ids.numel()
            finish_layer(layer, layer_id, attended, routed)
        return agreed / total if total else None
