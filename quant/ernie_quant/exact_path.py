"""Runs calibration tokens through the exact layers of the source, one expert at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ernie_local.config import Bank, ModelConfig
from ernie_local.loading.build import build_layer
from ernie_quant.layer import NormedTokens, StateFiles, attend_layer, finish_layer, route_bank
from ernie_quant.source import FloatSource
from ernie_quant.tokens import TokenTable


@dataclass(frozen=True, slots=True)
class ExactPath:
    """Some sequences on their way through the exact layers, behind the new embedding and tower.

    config: of the source; table: of these sequences.
    """

    source: FloatSource
    config: ModelConfig
    table: TokenTable
    files: StateFiles

    def run_layer(self, layer_id: int) -> dict[Bank, Tensor]:
        """Run the next layer; the choices of its routers by bank, (tokens of the bank, top_k) each.

        May be repeated for the same layer until its inputs are deleted.
        """
        layer = build_layer(self.source.checkpoint, self.config, layer_id)
        chosen: dict[Bank, Tensor] = {}
        with self.files.layer(layer_id) as (states, attended, routed):
            attend_layer(layer, self.config, self.table, states, attended)
            for bank in self.config.text.banks if layer.moe is not None else ():
                routing = route_bank(layer, self.table, attended, bank)
                chosen[bank.name] = routing.ids
                for expert_id in range(bank.num_experts):
                    rows, weights = routing.visitors(expert_id)
                    if rows.numel():
                        expert = self.source.expert(layer_id, bank.name, expert_id)
                        tokens = NormedTokens(layer, attended, rows)
                        tokens.add_outputs(expert.weighted_outputs, weights, routed)
            finish_layer(layer, layer_id, attended, routed)
        return chosen
