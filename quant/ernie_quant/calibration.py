"""Quantizes experts layer by layer, on the tokens as the layers before make them.

Images and tokens are embedded; then each layer runs attention over all tokens, routes them, quantizes each
expert from its own tokens, and passes its outputs on. Small pages are made beside the others and do not
affect the next layer. Only one expert's weights are in memory; hidden states stay in files. The first tokens
also go through the exact layers of the source, which shows how routing drifts, and before all layers forward
and back, if gradients of the answers are wanted. Steps follow each other; the units of a step are shared with
other processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec
import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.packed import PackedTensors, page_formats
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import Bank, ModelConfig
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.experts import packed_experts
from ernie_local.packing import pack_page
from ernie_local.packing.page import check_checksum
from ernie_quant.answer_gradients import AnswerGradients
from ernie_quant.dense import DenseMaker, Makes
from ernie_quant.exact_path import ExactPath
from ernie_quant.expert import (
    ExpertInputs,
    ExpertReport,
    OutputGradients,
    RoutedExpert,
    quantize_expert,
)
from ernie_quant.hessian import second_moments
from ernie_quant.layer import (
    Expert,
    NormedTokens,
    StateFiles,
    add_heads,
    attend_heads,
    attend_layer,
    finish_layer,
    route_bank,
)
from ernie_quant.layer_in_work import LayerInWork
from ernie_quant.recipe import Recipe
from ernie_quant.routing_file import BankTokens, RoutingFiles
from ernie_quant.source import FloatSource
from ernie_quant.tokens import Embedder, RowFile, TokenTable, cut_into_parts, first_sequences
from ernie_quant.units import UnitReport, Units, expert_unit

Tensor = torch.Tensor
NEIGHBOURS_PER_COLUMN = 2  # tokens for the prior of down, for each of its columns
MOST_DRIFT_TOKENS = 2048  # on the exact path, but at least one whole sequence
ExpertReports = dict[RoutedExpert, ExpertReport]
_Step = tuple[str, Mapping[str, Callable[[], UnitReport | None]]]


class ExpertMaker(Protocol):
    """Quantizes one expert from its tokens, writes it, and computes with what was written."""

    def make(self, expert: RoutedExpert, inputs: ExpertInputs) -> ExpertReport:
        """Quantize the expert and write it."""

    def made(self, expert: RoutedExpert) -> Expert:
        """The expert that was written, to compute with."""


class Calibration:
    """Runs the calibration tokens through the new checkpoint and makes its experts on the way."""

    def __init__(
        self,
        sequences: Sequence[EncodedSample],
        config: ModelConfig,
        table: TokenTable,
        source: FloatSource,
        made: Checkpoint,
        units: Units,
        maker: ExpertMaker,
        gradients: AnswerGradients | None = None,
        dense: DenseMaker | None = None,
    ) -> None:
        """config: of `made`, which has the layers that tokens run through; table: of the sequences.

        gradients: to weight tokens and outputs by; they are made after the tokens are embedded. dense: makes
        other matrices of `made` on the way.
        """
        self._sequences, self._config, self._table = sequences, config, table
        self._made, self._units, self._maker = made, units, maker
        self._gradients, self._dense = gradients, dense
        folder, width, text = units.work.folder, config.text.hidden_size, config.text
        self._files = StateFiles(folder, "states", table.num_tokens, width)
        self._heads = StateFiles(folder, "heads", table.num_tokens, text.num_attention_heads * text.head_dim)
        self._routings = RoutingFiles(folder)
        first = TokenTable.of(first_sequences(sequences, MOST_DRIFT_TOKENS), config)
        exact_config = dataclasses.replace(config, quantization=None)
        exact_files = StateFiles(folder, "exact", first.num_tokens, width)
        self._exact = ExactPath(source, exact_config, first, exact_files)

    def run(self, layer_id: int | None) -> None:
        """Have all experts of a layer made, after those of the layers before.

        None embeds the tokens, which comes first.
        """
        if layer_id is None:
            self._made.close()  # what others wrote meanwhile is read anew
            embedder = Embedder(self._made, self._config)
            embeds = {
                f"sequence {number}": partial(self._embed, embedder, number, tokens)
                for number, tokens in enumerate(self._table.sequences())
            }
            self._units.share("samples", embeds)
            for unit, make in {} if self._gradients is None else self._gradients.steps.items():
                self._units.share("gradients", {unit: make})
        elif f"layer {layer_id}" not in self._units.done:
            files = self._files, self._heads, self._routings
            dense = () if self._dense is None else self._dense.tensors(layer_id).names()
            layer = LayerInWork(layer_id, self._made, self._config, files, dense, self._units.done)
            for what, makes in self._steps(layer):
                self._units.share(what, makes)

    def agreement(self) -> dict[int, float]:
        """For each layer with experts, the share of routing choices that equal the source's."""
        return {
            layer_id: self._units.done[f"exact {layer_id}"]["routing_agreement"]
            for layer_id, has_experts in enumerate(self._config.text.moe_layers)
            if has_experts
        }

    def _steps(self, layer: LayerInWork) -> list[_Step]:
        """The steps of a layer: of each what its units are, and what makes them."""
        layer_id, text = layer.layer_id, self._config.text
        banks = text.banks if text.moe_layers[layer_id] else ()
        parts = list(enumerate(cut_into_parts(self._table.sequences(), self._table.num_tokens)))
        qkv, output, mlp = ({}, {}, {}) if self._dense is None else self._dense.units(layer)
        return [
            ("matrices", qkv),
            *self._attention_steps(layer, parts, output),
            (
                "banks",
                {f"routing {layer_id}.{bank.name}": partial(self._route, layer, bank.name) for bank in banks},
            ),
            (
                "experts",
                mlp
                | {
                    expert_unit(layer_id, bank.name, expert_id): partial(
                        self._make_expert, layer, bank.name, expert_id
                    )
                    for bank in banks
                    for expert_id in range(bank.num_experts)
                },
            ),
            (
                "parts of outputs",
                {
                    f"exact {layer_id}": partial(self._run_exact, layer_id),  # the longest
                    **{
                        f"outputs {layer_id}.{part}": partial(self._finish, layer, tokens)
                        for part, tokens in parts
                    },
                },
            ),
            ("layers", {f"layer {layer_id}": partial(self._clean, layer)}),
        ]

    def _attention_steps(
        self, layer: LayerInWork, parts: Sequence[tuple[int, list[slice]]], output: Makes
    ) -> list[_Step]:
        """In one step, or around the matrix of its output, which `output` makes."""
        layer_id = layer.layer_id
        add = self._add_heads if output else self._attend
        steps: list[_Step] = []
        if output:
            heads = {
                f"heads {layer_id}.{part}": partial(self._attend_heads, layer, tokens)
                for part, tokens in parts
            }
            steps = [("parts of heads", heads), ("matrices", output)]
        attention = {f"attention {layer_id}.{part}": partial(add, layer, tokens) for part, tokens in parts}
        return [*steps, ("parts of attention", attention)]

    def _embed(self, embedder: Embedder, number: int, tokens: slice) -> None:
        embedded = embedder.embed(self._sequences[number])
        others = [] if self._gradients is None else [self._gradients.path.files]
        for files in (self._files, self._exact.files, *others):
            if tokens.stop <= files.num_tokens:
                with files.open(0, is_shared=True) as states:
                    states.write(tokens, embedded)
                    states.sync()

    def _attend(self, layer: LayerInWork, sequences: list[slice]) -> None:
        with layer.states() as states, layer.attended(is_shared=True) as attended:
            attend_layer(layer.network, self._config, self._table, states, attended, sequences=sequences)
            attended.sync()

    def _attend_heads(self, layer: LayerInWork, sequences: list[slice]) -> None:
        with layer.states() as states, layer.heads(is_shared=True) as heads:
            attend_heads(layer.network, self._config, self._table, states, heads, sequences)
            heads.sync()

    def _add_heads(self, layer: LayerInWork, sequences: list[slice]) -> None:
        rows = _rows_of(sequences)
        with layer.states() as states, layer.heads() as heads, layer.attended(is_shared=True) as attended:
            add_heads(layer.network, states, heads, attended, rows)
            attended.sync()

    def _route(self, layer: LayerInWork, bank: Bank) -> None:
        with layer.attended() as attended:
            routing = route_bank(layer.network, self._table, attended, self._config.text.bank(bank))
            everything = NormedTokens(layer.network, attended, routing.rows)
            alike = torch.ones(len(everything))
            moments = second_moments(everything, alike, self._config.text.hidden_size).matrix
        side = None
        if self._gradients is not None:
            side = self._gradients.output_side(layer.layer_id, routing.rows)
        self._routings.write(layer.layer_id, bank, BankTokens(routing, moments, side))

    def _make_expert(self, layer: LayerInWork, bank: Bank, expert_id: int) -> UnitReport:
        tokens_of_bank = layer.tokens_of(bank)
        rows, weights = tokens_of_bank.routing.visitors(expert_id)
        num_neighbours = NEIGHBOURS_PER_COLUMN * self._config.text.bank(bank).expert_size
        nearest = tokens_of_bank.routing.neighbours(expert_id, num_neighbours)
        gradients = None
        if self._gradients is not None and tokens_of_bank.output_side is not None:
            own = self._gradients.of_rows(layer.layer_id, rows)
            gradients = OutputGradients(*own, tokens_of_bank.output_side)
        with layer.attended() as attended:
            neighbours = NormedTokens(layer.network, attended, nearest)
            tokens = NormedTokens(layer.network, attended, rows)
            moments = tokens_of_bank.moments
            inputs = ExpertInputs(tokens, weights, neighbours, len(neighbours), moments, gradients)
            report = self._maker.make((layer.layer_id, bank, expert_id), inputs)
        result: UnitReport = msgspec.to_builtins(report)
        return result

    def _run_exact(self, layer_id: int) -> UnitReport:
        banks = self._config.text.banks if self._config.text.moe_layers[layer_id] else ()
        found = {bank.name: self._routings.read(layer_id, bank.name).routing.ids for bank in banks}
        agreed = total = 0
        for bank_name, chosen in self._exact.run_layer(layer_id).items():
            others = found[bank_name][: len(chosen)]  # rows ascend, and these are the first
            agreed += int((chosen[:, :, None] == others[:, None, :]).any(-1).sum())
            total += chosen.numel()
        return {"routing_agreement": agreed / total} if total else {}

    def _finish(self, layer: LayerInWork, sequences: list[slice]) -> None:
        """Write the input states of the next layer: these tokens, with the layer's experts and MLP."""
        rows = _rows_of(sequences)
        with layer.attended() as attended, layer.next_states() as states:
            if layer.network.moe is not None:
                states.write(rows, self._expert_sums(layer, attended, rows))
            finish_layer(layer.network, layer.layer_id, attended, states, rows)
            states.sync()

    def _expert_sums(self, layer: LayerInWork, attended: RowFile, rows: slice) -> Tensor:
        """The sums of the experts' weighted outputs for these tokens, (tokens, hidden_size)."""
        sums = torch.zeros(rows.stop - rows.start, self._config.text.hidden_size)
        for bank in self._config.text.banks:
            routing = layer.tokens_of(bank.name).routing.of_rows(rows)
            for expert_id in range(bank.num_experts):
                # Read from the file, so that every process computes with the same bytes.
                expert = self._maker.made((layer.layer_id, bank.name, expert_id))
                visitors, weights = routing.visitors(expert_id)
                tokens = NormedTokens(layer.network, attended, visitors)
                for part, outputs in tokens.outputs(expert, weights):
                    sums[part - rows.start] += outputs
        return sums

    def _clean(self, layer: LayerInWork) -> None:
        """Delete what the next layer does not need."""
        layer.delete_files()
        self._exact.files.delete(layer.layer_id)
        if self._gradients is not None:
            self._gradients.files.delete(layer.layer_id)


def _rows_of(sequences: Sequence[slice]) -> slice:
    """The tokens of sequences that follow each other."""
    return slice(sequences[0].start, sequences[-1].stop)


class PageMaker:
    """Makes experts as pages of a checkpoint in our own format."""

    def __init__(
        self, source: FloatSource, config: ModelConfig, recipe: Recipe, files: CheckpointFiles
    ) -> None:
        """config: with the new tables."""
        assert config.quantization is not None
        self._source, self._recipe, self._files = source, recipe, files
        packed, has_small = PackedTensors(config), bool(config.quantization.small_experts)
        self._places: dict[tuple[int, Bank], list[tuple[tuple[str, int], ...]]] = {}
        for layer_id, bank in config.text.layer_banks():
            # Tensor and row of each expert's page, and of its small page if it has one.
            kinds = (False, True) if has_small else (False,)
            located = (packed.locate_experts(layer_id, bank.name, small=small) for small in kinds)
            self._places[layer_id, bank.name] = list(zip(*located, strict=True))

    def make(self, expert: RoutedExpert, inputs: ExpertInputs) -> ExpertReport:
        """Quantize the expert and write its pages."""
        layer_id, bank, expert_id = expert
        places = self._places[layer_id, bank][expert_id]
        pages, report = quantize_expert(
            self._source.expert(layer_id, bank, expert_id),
            inputs,
            self._recipe,
            *(page_formats(name.rpartition(".")[2]) for name, _ in places),
        )
        for (name, row), page in zip(places, pages, strict=True):
            self._files.write(name, [pack_page(page)], row)
        return report

    def made(self, expert: RoutedExpert) -> Expert:
        """What the runtime computes from the page in the file; ModelUnusable for a damaged one."""
        layer_id, bank, expert_id = expert
        name, row = self._places[layer_id, bank][expert_id][0]
        page = self._files.read(name, row)
        check_checksum(page, f"{self._files.directory}: page {row} of {name}")
        return packed_expert(page[None])


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
