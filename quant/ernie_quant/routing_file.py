"""Keeps in a file where a bank's tokens are routed: every process has to go by the same choices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ernie_local.config import Bank
from ernie_local.files import replaced
from ernie_quant.layer import Routing
from ernie_quant.work import damaged_work


@dataclass(frozen=True, slots=True)
class BankTokens:
    """What a layer's router chose for all tokens of a bank; moments: (hidden, hidden), of these tokens.

    output_side: (hidden, hidden), of the gradients at their outputs, None where these are not known.
    """

    routing: Routing
    moments: torch.Tensor
    output_side: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class RoutingFiles:
    """The files in `folder`, one for each layer and bank."""

    folder: Path

    def write(self, layer_id: int, bank: Bank, tokens: BankTokens) -> None:
        """Write the file of a bank."""
        routing = tokens.routing
        narrow = {"rows": routing.rows, "ids": routing.ids, "ranked": routing.ranked}
        tensors = {name: ids.to(torch.int32) for name, ids in narrow.items()}
        tensors |= {"weights": routing.weights, "moments": tokens.moments}
        if tokens.output_side is not None:
            tensors["output_side"] = tokens.output_side
        with replaced(self._path(layer_id, bank)) as new:
            save_file(tensors, new)

    def read(self, layer_id: int, bank: Bank) -> BankTokens:
        """What was written. ModelUnusable if it is not there or not whole."""
        path = self._path(layer_id, bank)
        try:
            tensors = load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise damaged_work(path, str(error)) from error
        rows, ids, ranked = (tensors[name].long() for name in ("rows", "ids", "ranked"))
        routing = Routing(rows, ids, tensors["weights"], ranked)
        return BankTokens(routing, tensors["moments"], tensors.get("output_side"))

    def delete(self, layer_id: int) -> None:
        """Delete the files of a layer, if they are there."""
        for path in self.folder.glob(f"routing.{layer_id}.*"):
            path.unlink(missing_ok=True)

    def _path(self, layer_id: int, bank: Bank) -> Path:
        return self.folder / f"routing.{layer_id}.{bank}"
