"""Keeps in memory what a process needs of the layer whose units it makes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import Bank, ModelConfig
from ernie_local.loading.build import build_layer
from ernie_local.model.decoder import DecoderLayer
from ernie_quant.layer import StateFiles
from ernie_quant.routing_file import BankTokens, RoutingFiles
from ernie_quant.tokens import RowFile
from ernie_quant.units import dense_unit


class LayerInWork:
    """One layer of the new checkpoint, and the files with its tokens."""

    def __init__(
        self,
        layer_id: int,
        made: Checkpoint,
        config: ModelConfig,
        files: tuple[StateFiles, StateFiles, RoutingFiles],
        dense: Sequence[str],
        done: Collection[str],
    ) -> None:
        """files: of hidden states, of the heads' outputs, and of routing.

        dense: the layer's packed tensors that are made from its tokens; done: units that are finished by now.
        """
        self.layer_id = layer_id
        self._made, self._config, self._dense, self._done = made, config, dense, done
        self._states, self._heads, self._routings = files
        self._network: tuple[list[str], DecoderLayer] | None = None
        self._tokens: tuple[Bank, BankTokens] | None = None

    @property
    def network(self) -> DecoderLayer:
        """The layer of the new checkpoint without experts and dense matrices that are not made yet."""
        unmade = (tensor for tensor in self._dense if dense_unit(tensor) not in self._done)
        missing = [tensor.rpartition(".")[0] for tensor in unmade]
        if self._network is None or self._network[0] != missing:
            self._made.close()  # what others wrote meanwhile is read anew
            self._network = missing, build_layer(self._made, self._config, self.layer_id, missing)
        return self._network[1]

    def states(self) -> RowFile:
        """The layer's input states."""
        return self._states.open(self.layer_id)

    def heads(self, *, is_shared: bool = False) -> RowFile:
        """What comes out of the heads of its attention."""
        return self._heads.open(self.layer_id, is_shared=is_shared)

    def attended(self, *, is_shared: bool = False) -> RowFile:
        """The hidden states with the layer's attention added."""
        return self._states.open(f"{self.layer_id}.attended", is_shared=is_shared)

    def next_states(self) -> RowFile:
        """The input states of the next layer, to be written."""
        return self._states.open(self.layer_id + 1, is_shared=True)

    def tokens_of(self, bank: Bank) -> BankTokens:
        """The routing of a bank; that of one bank is kept."""
        if self._tokens is None or self._tokens[0] != bank:
            self._tokens = bank, self._routings.read(self.layer_id, bank)
        return self._tokens[1]

    def delete_files(self) -> None:
        """Delete what the next layer does not need."""
        self._states.delete(self.layer_id)
        self._states.delete(f"{self.layer_id}.attended")
        self._heads.delete(self.layer_id)
        self._routings.delete(self.layer_id)
