"""Measures what bits are worth: runs the unquantized model once over some samples, in many copies.

Besides the exact copy of all tokens there is one copy for each layer whose experts are rounded, and one for
each layer whose other matrices are. A copy branches off at its layer and then passes the exact layers, so
every weight is read once. At the end, a copy's divergence at the answers is what its layer costs. Only one
expert's weights are in memory.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.adapters.merged import open_merged, read_adapters
from ernie_local.adapters.source import AdapterSource
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ExpertBank, ModelConfig, read_config
from ernie_local.errors import UsageError
from ernie_local.loading.build import build_layer
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.layers import GatedMLP, Linear
from ernie_local.model.moe import served_tokens
from ernie_local.packing.formats import formats_for, largest_first
from ernie_quant.answer_gradients import answer_positions
from ernie_quant.expert import ExpertWeights
from ernie_quant.layer import NormedTokens, Routing, attend_layer, finish_layer, route_bank
from ernie_quant.losses import (
    PARTS,
    AnswerDivergence,
    option_losses,
    rounded,
    rounded_expert,
    trellis_ratios,
)
from ernie_quant.measurements import (
    ExpertLosses,
    Measurements,
    damaged_measurements,
    read_measurements,
    write_measurements,
)
from ernie_quant.place import check_new_file, telling_full_disk
from ernie_quant.source import FloatSource
from ernie_quant.source_check import weight_checks
from ernie_quant.tokens import Embedder, RowFile, TokenTable
from ernie_quant.units import OnUnit
from ernie_quant.work import (
    adapters_identity,
    calibration_identity,
    source_identity,
    tell_nobody,
    version_identity,
)

Tensor = torch.Tensor
EXPERT_FORMATS = tuple(low_bit.name for low_bit in reversed(largest_first(formats_for("mixed"))))
PROBE_FORMAT = "w2"
DENSE_FORMAT = "w4"
MOST_TOKENS = 4096  # of all samples; there are two copies of them for each layer
_MOST_OF_EXPERT = 256  # tokens that represent all tokens of an expert
_LEAST_TOKENS = 32  # with fewer, tokens that rank the expert next are added
_RANKS_TOKENS = 64
_MOST_COMPARED = 2048  # tokens of a bank on which w2t is held against w2


@dataclasses.dataclass(slots=True)
class _Copies:
    """The copies of all tokens: the exact one, and those that were changed in one layer."""

    table: TokenTable  # of one copy
    experts: dict[int, int] = dataclasses.field(default_factory=dict)  # layer -> copy
    dense: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def count(self) -> int:
        return 1 + len(self.experts) + len(self.dense)

    def rows(self, copy_id: int) -> slice:
        return slice(copy_id * self.table.num_tokens, (copy_id + 1) * self.table.num_tokens)


class Probe:
    """One pass over `sequences`; its temporary files are in `directory`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        sequences: Sequence[EncodedSample],
        directory: Path,
        on_unit: OnUnit,
    ) -> None:
        """checkpoint: unquantized; on_unit: called with each layer, the number of layers done, and of all."""
        assert config.quantization is None
        self._checkpoint, self._config, self._sequences = checkpoint, config, sequences
        self._source, self._directory, self._on_unit = FloatSource(checkpoint), directory, on_unit
        self._copies = _Copies(TokenTable.of(sequences, config))
        self._losses: list[ExpertLosses] = []

    def run(self, identity: dict[str, str]) -> Measurements:
        """Measure everything; `identity` becomes part of the result."""
        table = self._copies.table
        states = self._new_rows("states.0", 1)
        embedder = Embedder(self._checkpoint, self._config)
        for sequence, tokens in zip(self._sequences, table.sequences(), strict=True):
            states.write(tokens, embedder.embed(sequence))
        for layer_id, has_experts in enumerate(self._config.text.moe_layers):
            states = self._run_layer(layer_id, has_experts, states)
            self._on_unit(f"layer {layer_id}", layer_id + 1, self._config.text.num_hidden_layers)
        positions = answer_positions(self._sequences, table)
        exact = states.read(positions)
        distance = AnswerDivergence(self._checkpoint, self._config, exact)
        result = Measurements(
            identity=identity,
            tokens={
                bank.name: int(served_tokens(bank, table.is_vision).sum()) for bank in self._config.text.banks
            },
            positions=positions.numel(),
            probe_format=PROBE_FORMAT,
            expert_divergence=self._distances(self._copies.experts, states, positions, distance),
            dense_divergence=self._distances(self._copies.dense, states, positions, distance),
            head_divergence=distance.of(exact, DENSE_FORMAT),
            experts=self._losses,
        )
        states.close()
        return result

    def _distances(
        self, changed: dict[int, int], states: RowFile, positions: Tensor, distance: AnswerDivergence
    ) -> dict[int, float]:
        num_tokens = self._copies.table.num_tokens
        return {
            layer_id: distance.of(states.read(positions + copy_id * num_tokens))
            for layer_id, copy_id in changed.items()
        }

    def _new_rows(self, name: str, copies: int) -> RowFile:
        num_rows = copies * self._copies.table.num_tokens
        return RowFile(self._directory / name, num_rows, self._config.text.hidden_size, is_new=True)

    def _run_layer(self, layer_id: int, has_experts: bool, states: RowFile) -> RowFile:
        """Run all copies through the layer, and one or two more that begin here; their output states."""
        copies = self._copies
        before = copies.count
        layer = build_layer(self._checkpoint, self._config, layer_id)
        coarse = _with_rounded_matrices(layer)
        dense_copy = copies.dense[layer_id] = copies.count
        expert_copy = None
        if has_experts:
            expert_copy = copies.experts[layer_id] = copies.count
        attended = self._new_rows("attended", copies.count)
        routed = self._new_rows(f"states.{layer_id + 1}", copies.count)
        attend_layer(layer, self._config, copies.table.repeated(before), states, attended)
        # The copy that begins here starts from the exact input states.
        attend_layer(coarse, self._config, copies.table, states, attended, copies.rows(dense_copy).start)
        if expert_copy is not None:
            attended.write(copies.rows(expert_copy), attended.read(copies.rows(0)))
            for bank in self._config.text.banks:
                self._run_bank(layer, layer_id, bank, attended, routed)
        finish_layer(layer, layer_id, attended, routed, slice(0, copies.rows(before).start))
        finish_layer(coarse, layer_id, attended, routed, copies.rows(dense_copy))
        if expert_copy is not None:
            finish_layer(layer, layer_id, attended, routed, copies.rows(expert_copy))
        attended.close()
        states.close()
        states.path.unlink()
        return routed

    def _run_bank(
        self, layer: DecoderLayer, layer_id: int, bank: ExpertBank, attended: RowFile, routed: RowFile
    ) -> None:
        copies = self._copies
        num_tokens = copies.table.num_tokens
        expert_copy = copies.experts[layer_id]
        # Each copy is routed by its own states; the copy with rounded experts goes where the exact one goes.
        routing = route_bank(layer, copies.table.repeated(expert_copy), attended, bank)
        own = _of_exact_copy(routing, num_tokens)
        importance = _mean_squares(NormedTokens(layer, attended, own.rows), self._config.text.hidden_size)
        some = own.rows[:: -(-max(len(own.rows), 1) // _MOST_COMPARED)]
        typical = torch.cat(list(NormedTokens(layer, attended, some))) if len(some) > 1 else None
        ratios = dict.fromkeys(PARTS, 1.0)
        for expert_id in range(bank.num_experts):
            weights = self._source.expert(layer_id, bank.name, expert_id)
            if expert_id == 0 and typical is not None:
                ratios = trellis_ratios(weights, typical)
            rows, token_weights = routing.visitors(expert_id)
            power = 0.0  # of the exact copy's outputs
            tokens = NormedTokens(layer, attended, rows)
            for part_rows, outputs in tokens.outputs(weights.weighted_outputs, token_weights):
                routed.add(part_rows, outputs)
                power += float(outputs[part_rows < num_tokens].square().sum(dtype=torch.float64))
            own_rows, own_weights = own.visitors(expert_id)
            visitors = NormedTokens(layer, attended, own_rows)
            lost = _measure(weights, importance, visitors, own_weights, own, expert_id, ratios)
            self._losses.append(ExpertLosses(layer_id, bank.name, expert_id, len(visitors), power, lost))
            if own_rows.numel():
                all_tokens = torch.cat(list(visitors))
                coarse = rounded_expert(weights, importance, all_tokens, (PROBE_FORMAT, PROBE_FORMAT))
                outputs = coarse.weighted_outputs(all_tokens, own_weights[:, None])
                routed.add(own_rows + expert_copy * num_tokens, outputs)


def _measure(
    weights: ExpertWeights,
    importance: Tensor,
    visitors: NormedTokens,
    visitor_weights: Tensor,
    own: Routing,
    expert_id: int,
    ratios: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """The shares that formats lose on some of the expert's tokens.

    own: the routing of the exact copy; ratios: of its bank.
    """
    step = -(-max(len(visitors), 1) // _MOST_OF_EXPERT)
    rows, token_weights = visitors.rows[::step], visitor_weights[::step]
    if len(visitors) < _LEAST_TOKENS:
        nearest = own.neighbours(expert_id, _RANKS_TOKENS)
        if not len(visitors) and not len(nearest):
            nearest = own.rows[:_RANKS_TOKENS]
        typical = visitor_weights.mean() if len(visitors) else torch.tensor(1.0)
        rows = torch.cat((rows, nearest))
        token_weights = torch.cat((token_weights, typical.expand(len(nearest))))
    if not len(rows):  # a bank without any token
        return {part: dict.fromkeys(EXPERT_FORMATS, 0.0) for part in PARTS}
    tokens = torch.cat(list(NormedTokens(visitors.layer, visitors.states, rows)))
    return option_losses(weights, importance, tokens, token_weights, EXPERT_FORMATS, ratios)


def probe_sequences(sequences: Sequence[EncodedSample], most_tokens: int) -> list[EncodedSample]:
    """The first sequences with an answer, at least one, of at most `most_tokens` tokens together.

    Sequences with images come first, but leave a third of the tokens to those without, if there are any.
    """
    answered = [sequence for sequence in sequences if sequence.answers]
    with_images = [sequence for sequence in answered if sequence.patches]
    texts = [sequence for sequence in answered if not sequence.patches]
    chosen: list[EncodedSample] = []
    room = most_tokens
    for candidates, kept in ((with_images, most_tokens // 3 if texts else 0), (texts, 0)):
        for sequence in candidates:
            length = len(sequence.token_ids)
            if not chosen or length <= room - kept:
                chosen.append(sequence)
                room -= length
    return chosen


def _with_rounded_matrices(layer: DecoderLayer) -> DecoderLayer:
    """A copy of the layer whose attention and shared experts, or dense MLP, are rounded to DENSE_FORMAT."""
    coarse = copy.deepcopy(layer)
    for module in coarse.modules():
        # Routers stay exact.
        if isinstance(module, (GatedMLP, type(coarse.self_attn))):
            for linear in module.children():
                if isinstance(linear, Linear):
                    linear.weight.data = rounded(linear.weight.data, DENSE_FORMAT)
    return coarse


def _of_exact_copy(routing: Routing, num_tokens: int) -> Routing:
    count = int((routing.rows < num_tokens).sum())  # rows ascend
    return Routing(routing.rows[:count], routing.ids[:count], routing.weights[:count], routing.ranked[:count])


def _mean_squares(tokens: NormedTokens, hidden_size: int) -> Tensor:
    total = sum((part.square().sum(0) for part in tokens), torch.zeros(hidden_size))
    return total.div_(max(len(tokens), 1)).clamp_(min=1e-12)


def measurements_in(
    path: Path,
    source: Path,
    sequences: Sequence[EncodedSample],
    on_unit: OnUnit = tell_nobody,
    source_name: str | None = None,
    lora: Sequence[AdapterSource] = (),
) -> Measurements:
    """Read the measurements in `path`, or measure the unquantized model in `source` and write them there.

    sequences: the first ones with answers are used, of at most MOST_TOKENS. source_name: the identity of a
    model on the hub. lora: adapters that are added to its weights.

    UsageError if the file holds measurements of something else or cannot be written, or if no sequence has an
    answer; ModelUnusable if it is damaged.
    """
    chosen = probe_sequences(sequences, MOST_TOKENS)
    if not chosen:
        raise UsageError(
            f"0 of {len(sequences)} samples have an answer, at least 1 is needed",
            "losses are measured where the model answers",
            "give samples with questions and answers, or keep the generated ones",
        )
    config = read_config(source)
    adapter = read_adapters(lora, config)
    added = "" if adapter is None else f" with {adapters_identity(lora, adapter)}"
    identity = {
        "source": f"{source_name or source_identity(source)}{added}",
        "calibration": calibration_identity(chosen),
        "version": version_identity(),
    }
    if path.exists():
        return _checked(read_measurements(path, identity), path, config)
    if config.quantization is not None:
        raise UsageError(
            f"{source} is quantized already",
            "losses are measured from the unquantized weights",
            "start from the bfloat16 checkpoint",
        )
    check_new_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        telling_full_disk(path.parent, "nothing is kept, measurements are written when all is measured"),
        open_merged(source, config, adapter) as checkpoint,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".ernie-local.") as scratch,
        torch.inference_mode(),
    ):
        for unit, check in weight_checks(checkpoint).items():
            check()
            on_unit(unit, 0, config.text.num_hidden_layers)
        measured = Probe(checkpoint, config, chosen, Path(scratch), on_unit).run(identity)
        write_measurements(path, measured)
    return measured


def _checked(measured: Measurements, path: Path, config: ModelConfig) -> Measurements:
    """ModelUnusable unless every layer and expert of the model was measured in every format."""
    text = config.text
    layers = set(range(text.num_hidden_layers))
    experts = [
        (layer_id, bank.name, expert_id)
        for layer_id, bank in text.layer_banks()
        for expert_id in range(bank.num_experts)
    ]
    formats = set(EXPERT_FORMATS)
    wrong = {
        "dense_divergence": measured.dense_divergence.keys() != layers,
        "expert_divergence": measured.expert_divergence.keys() != {layer_id for layer_id, _, _ in experts},
        "tokens": measured.tokens.keys() != {bank.name for bank in text.banks},
        "probe_format": measured.probe_format not in EXPERT_FORMATS,
        "experts": [(one.layer, one.bank, one.expert) for one in measured.experts] != experts,
        "lost": any(
            one.lost.keys() != set(PARTS) or any(lost.keys() != formats for lost in one.lost.values())
            for one in measured.experts
        ),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise damaged_measurements(path, f"{name} is not of the layers, experts and formats of the model")
    return measured
