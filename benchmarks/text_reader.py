"""Runs PP-OCR's recognition of text lines by onnxruntime, with replaceable matrices.

A matrix is what multiplies each place alone: MatMul with constant weights, or a convolution of 1 x 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

Tensor = torch.Tensor
LINE_HEIGHT = 48  # pixels: the network was trained on lines of this height
_BLANK = 0


@dataclass(frozen=True)
class ReaderMatrix:
    """weights: (outputs, inputs) float32. constant, inputs: names of weights and input in the graph."""

    constant: str
    inputs: str
    weights: Tensor
    is_convolution: bool

    def tokens(self, values: Tensor) -> Tensor:
        """(1, inputs, height, width) of a convolution, (1, width, inputs) of others -> (tokens, inputs)."""
        if self.is_convolution:
            values = values.movedim(1, -1)
        return values.reshape(-1, self.weights.shape[1])

    def stored(self, weights: Tensor) -> NDArray[numpy.float32]:
        """As the graph wants them."""
        wanted = weights[:, :, None, None] if self.is_convolution else weights.t()
        return numpy.ascontiguousarray(wanted.numpy())


class TextReader:
    """Weights in float32, as they are in the package."""

    def __init__(self, path: Path, num_threads: int) -> None:
        self._model = onnx.load(path)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = num_threads
        # Threads that spin between runs would take the processors from torch.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._characters = _characters(self._model)
        softmax = next(node for node in reversed(self._model.graph.node) if node.op_type == "Softmax")
        self._logits: str = softmax.input[0]

    def matrices(self, least: int) -> list[ReaderMatrix]:
        """Those with at least so many inputs and outputs, in the order of the graph."""
        nodes = self._model.graph.node
        constants = {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
        found = []
        for node in nodes:
            if node.op_type not in ("MatMul", "Conv") or node.input[1] not in constants:
                continue
            weights = torch.tensor(numpy_helper.to_array(constants[node.input[1]]))
            is_convolution = node.op_type == "Conv"
            if is_convolution:
                if _integers(node, "group", 1) != 1 or weights.shape[2:] != (1, 1):
                    continue
                assert set(_integers(node, "strides", 1)) == {1}
                weights = weights[:, :, 0, 0]
            else:
                weights = weights.t()
            if min(weights.shape) >= least:
                found.append(ReaderMatrix(node.input[1], node.input[0], weights.contiguous(), is_convolution))
        return found

    def open(
        self, replaced: Mapping[str, NDArray[numpy.float32]], captured: Collection[str] = ()
    ) -> ReaderSession:
        """The network with other constants; `captured`: values that it tells beside its logits."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for node in model.graph.node:
            if node.op_type == "Constant" and node.output[0] in replaced:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(replaced[node.output[0]]))
        names = [self._logits, *captured]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
        )
        return ReaderSession(session, names)

    def text(self, log_shares: Tensor) -> str:
        """What is likeliest at each step, without repetitions and blanks. log_shares: (steps, characters)."""
        steps = log_shares.argmax(1).unique_consecutive().tolist()
        return "".join(self._characters[step] for step in steps if step != _BLANK)


class ReaderSession:
    """Reads one line at a time, so there is no padding."""

    def __init__(self, session: Any, names: list[str]) -> None:
        self._session = session
        self._names = names

    def read(self, line: Image.Image) -> tuple[Tensor, list[Tensor]]:
        """Logarithms of characters' shares at each step, (steps, characters); and captured values."""
        assert line.height == LINE_HEIGHT, line.size
        pixels = numpy.asarray(line.convert("RGB"), dtype=numpy.float32)[:, :, ::-1]  # it takes BGR
        batch = numpy.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / 127.5 - 1)
        logits, *captured = (torch.from_numpy(each) for each in self._session.run(self._names, {"x": batch}))
        return logits[0].double().log_softmax(1), captured


def _characters(model: Any) -> list[str]:
    """By class: the blank, then the list that the file carries, then a space."""
    listed = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return ["", *listed.split("\n"), " "]


def _integers(node: Any, name: str, default: Any) -> Any:
    """An attribute of a node: an integer, or a list of them."""
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default
