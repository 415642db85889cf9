"""Measures how routing drifts: the first tokens also go through the exact layers of the source.

Both paths begin with the same states, those of the new checkpoint's embedding and tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ernie_local.config import Bank, ExpertBank, ModelConfig
from ernie_local.loading.build import build_layer
from ernie_local.model.decoder import DecoderLayer
from ernie_quant.layer import NormedTokens, Routing, attend_layer, finish_layer, route_bank
from ernie_quant.losses import weighted_expert
from ernie_quant.source import FloatSource
from ernie_quant.tokens import RowFile, TokenSequence, TokenTable
from ernie_quant.work import Work

MOST_TOKENS = 2048  # but at least one whole sequence


class Drift:
    """The exact path of the first sequences, one layer after the other."""

    def __init__(
        self, source: FloatSource, config: ModelConfig, sequences: Sequence[TokenSequence], work: Work
    ) -> None:
        """config: of the source, which is unquantized."""
        assert config.quantization is None
        self._source, self._config, self._work = source, config, work
        count, num_tokens = 1, len(sequences[0].token_ids)
        while count < len(sequences) and num_tokens + len(sequences[count].token_ids) <= MOST_TOKENS:
            num_tokens += len(sequences[count].token_ids)
            count += 1
        self._table = TokenTable.of(sequences[:count], config)

    def begin(self, states: RowFile) -> None:
        """Copy the first layer's input states from those of the new checkpoint."""
        with self._open("exact.0", is_new=True) as exact:
            exact.write(slice(None), states.read(slice(0, self._table.num_tokens)))
            exact.sync()

    def run_layer(self, layer_id: int, found: dict[Bank, Routing]) -> float | None:
        """Run the next layer; the share of choices that `found`, the new checkpoint, makes too.

        None for a layer without experts. May be repeated for the same layer until `leave_layer`.
        """
        layer = build_layer(self._source.checkpoint, self._config, layer_id)
        agreed = total = 0
        with (
            self._open(f"exact.{layer_id}") as states,
            self._open("exact.attended", is_new=True) as attended,
            self._open("exact.routed", is_new=True) as routed,
        ):
            attend_layer(layer, self._config, self._table, states, attended)
            for bank in self._config.text.banks if layer.moe is not None else ():
                routing = self._run_bank(layer, layer_id, bank, attended, routed)
                others = found[bank.name].ids[: len(routing.ids)]  # rows ascend, and these are the first
                agreed += int((routing.ids[:, :, None] == others[:, None, :]).any(-1).sum())
                total += routing.ids.numel()
            finish_layer(layer, layer_id, attended, routed)
            routed.sync()
        self._work.file("exact.routed").replace(self._work.file(f"exact.{layer_id + 1}"))
        return agreed / total if total else None

    def leave_layer(self, layer_id: int) -> None:
        """Delete the input states of the layer, once it is recorded as done."""
        self._work.file(f"exact.{layer_id}").unlink()

    def _open(self, name: str, *, is_new: bool = False) -> RowFile:
        hidden_size = self._config.text.hidden_size
        return RowFile(self._work.file(name), self._table.num_tokens, hidden_size, is_new=is_new)

    @torch.inference_mode()
    def _run_bank(
        self, layer: DecoderLayer, layer_id: int, bank: ExpertBank, attended: RowFile, routed: RowFile
    ) -> Routing:
        routing = route_bank(layer, self._table, attended, bank)
        for expert_id in range(bank.num_experts):
            rows, weights = routing.visitors(expert_id)
            if rows.numel():
                expert = self._source.expert(layer_id, bank.name, expert_id)
                tokens = NormedTokens(layer, attended, rows)
                for part_rows, outputs in tokens.outputs(weighted_expert(expert), weights):
                    routed.add(part_rows, outputs)
        return routing
