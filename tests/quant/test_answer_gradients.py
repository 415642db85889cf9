"""Gradients of the answers, layer by layer: against differences of the whole model, and in a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import EncodedSample, SampleEncoder
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ErnieLocalError, Stopped
from ernie_local.loading.build import build_layer
from ernie_local.model.moe import served_tokens
from ernie_local.model.rope import TextRope, rotate_pairs
from ernie_quant.answer_gradients import AnswerGradients, answer_positions, draw_of_information
from ernie_quant.job import Job
from ernie_quant.layer import StateFiles
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.source import FloatSource
from ernie_quant.tokens import Embedder

CONFIG = read_config(NANO_DIRECTORY)
TABLES = format_tables(CONFIG, FormatChoice(experts="w2"))


@pytest.fixture(scope="module")
def sequences() -> list[EncodedSample]:
    encoder = SampleEncoder.of_model(NANO_DIRECTORY)
    return [encoder.encode(sample) for sample in generated_samples(3, families=("images", "texts"))]


def test_drawn_vectors_have_the_covariance_of_the_logits() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5]])
    drawn = draw_of_information(logits.expand(200_000, 4), torch.Generator().manual_seed(0))
    shares = logits.softmax(-1)[0]
    expected = shares.diag() - torch.outer(shares, shares)
    assert torch.allclose(drawn.t() @ drawn / len(drawn), expected, atol=2e-3)


def test_an_answer_is_chosen_before_its_ids_and_without_one_behind_the_last() -> None:
    first = EncodedSample("a", (1, 25, 26, 27, 28), (), answers=((2, 4),))
    second = EncodedSample("b", (1, 25, 26), (), answers=())
    gradients = AnswerGradients.of(None, CONFIG, [first, second], Path())  # type: ignore[arg-type]
    assert answer_positions(gradients.sequences, gradients.path.table).tolist() == [1, 2, 7]


@pytest.fixture(scope="module")
def made(sequences: list[EncodedSample], tmp_path_factory: pytest.TempPathFactory) -> AnswerGradients:
    """All states and gradients of the exact model."""
    checkpoint = open_checkpoint(NANO_DIRECTORY, CONFIG)
    folder = tmp_path_factory.mktemp("gradients")
    gradients = AnswerGradients.of(FloatSource(checkpoint), CONFIG, sequences, folder)
    embedder = Embedder(checkpoint, CONFIG)
    path = gradients.path
    with path.files.open(0, is_new=True) as states:
        for sequence, tokens in zip(sequences, path.table.sequences(), strict=True):
            states.write(tokens, embedder.embed(sequence))
    steps = gradients.steps
    for unit, make in steps.items():
        make()
        if unit == "forward 2":
            with path.files.open(3) as states:
                torch.save(states.read(slice(None)), folder / "states of layer 3")
    assert list(steps)[-1] == "answers 1"
    assert not (folder / "forward.5").exists()
    return gradients


def test_a_gradient_says_how_the_logits_change(made: AnswerGradients) -> None:
    """A small step at the outputs of layer 2, through the layers behind it, in both directions."""
    path, folder = made.path, made.files.folder
    states = torch.load(folder / "states of layer 3")
    with made.files.open(2) as file:
        gradient = file.read(slice(None))
    positions = answer_positions(made.sequences, path.table)
    norm = path.source.read("norm.weight")
    head = path.source.read("embed_tokens.weight")

    def scored(step: torch.Tensor, drawn: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        with path.files.open(3, is_new=True) as file:
            file.write(slice(None), states + step)
        for layer_id in range(3, CONFIG.text.num_hidden_layers):
            path.run_layer(layer_id)
        with path.files.open(CONFIG.text.num_hidden_layers) as file:
            last = file.read(positions)
        normed = norm * last * (last.square().mean(-1, keepdim=True) + CONFIG.text.rms_norm_eps).rsqrt()
        logits = normed @ head.t()
        if drawn is None:
            drawn = draw_of_information(logits, torch.Generator().manual_seed(0))
        return (logits.double() * drawn).sum(), drawn

    _, drawn = scored(torch.zeros_like(states), None)
    # Along the gradient, token by token in its own measure: the largest change that a small step makes.
    direction = gradient / gradient.norm() * states.norm(dim=1, keepdim=True).median()
    step = 1e-4 * direction
    change = float(scored(step, drawn)[0] - scored(-step, drawn)[0]) / 2
    assert change == pytest.approx(float((gradient * step).sum()), rel=0.05)


def textbook_layer(made: AnswerGradients, hidden: torch.Tensor) -> torch.Tensor:
    """Layer 3 in plain torch, all of it in one graph of autograd."""
    source, table, text = made.path.source, made.path.table, CONFIG.text
    layer = build_layer(source.checkpoint, CONFIG, 3)
    assert layer.moe is not None
    assert layer.moe.shared_experts is not None
    attended = []
    for tokens in table.sequences():
        own = layer.input_layernorm(hidden[tokens])
        angles = TextRope(text, torch.device("cpu")).angles(table.positions[:, tokens])
        queries, keys, values = layer.self_attn.project(own)
        heads = [rotate_pairs(queries, *angles), rotate_pairs(keys, *angles), values]
        query, key, value = (one.transpose(0, 1)[None] for one in heads)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        attended.append(layer.self_attn.o_proj(found[0].transpose(0, 1).flatten(1)))
    hidden = hidden + torch.cat(attended)
    normed = layer.post_attention_layernorm(hidden)
    outputs: torch.Tensor = hidden + layer.moe.shared_experts(normed)
    for bank in text.banks:
        router = layer.moe.routers[bank.name]
        scores = (normed @ router.weight.t()).softmax(-1)
        chosen = torch.zeros_like(scores).scatter(
            1, (scores + router.bias).topk(text.experts_per_token).indices, 1
        )
        weights = scores * chosen
        weights = weights / weights.sum(-1, keepdim=True) * served_tokens(bank, table.is_vision)[:, None]
        for expert_id in range(bank.num_experts):
            one = source.expert(3, bank.name, expert_id)
            inner = functional.silu(normed @ one.gate.t()) * (normed @ one.up.t())
            outputs = outputs + weights[:, expert_id, None] * (inner @ one.down.t())
    return outputs


def test_a_layer_is_gone_back_through_as_by_autograd(made: AnswerGradients) -> None:
    states = torch.load(made.files.folder / "states of layer 3").requires_grad_()
    with made.files.open(3) as behind, made.files.open(2) as before:
        gradients, found = behind.read(slice(None)), before.read(slice(None))
    (expected,) = torch.autograd.grad(textbook_layer(made, states), states, gradients)
    wrong = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)
    assert wrong.median() < 1e-4
    assert (wrong < 1e-2).double().mean() > 0.99  # a near tie of a router may fall the other way


def test_gradients_that_are_not_finite_are_told(made: AnswerGradients, tmp_path: Path) -> None:
    path, layer_id = made.path, 3
    states = StateFiles(tmp_path, "forward", path.table.num_tokens, CONFIG.text.hidden_size)
    gradients = StateFiles(tmp_path, "gradient", path.table.num_tokens, CONFIG.text.hidden_size)
    wrong = torch.zeros(path.table.num_tokens, CONFIG.text.hidden_size)
    wrong[5, 7] = torch.inf
    for files, rows in ((states, torch.load(made.files.folder / "states of layer 3")), (gradients, wrong)):
        with files.open(layer_id, is_new=True) as file:
            file.write(slice(None), rows)
    broken = dataclasses.replace(made, path=dataclasses.replace(path, files=states), files=gradients)
    with pytest.raises(ErnieLocalError, match="gradients of the answers at layer 3 are not finite"):
        broken.go_back(layer_id)


def test_what_comes_behind_the_last_answer_does_not_matter(made: AnswerGradients) -> None:
    path = made.path
    with made.files.open(1) as file:
        lengths = file.read(slice(None)).norm(dim=1)
    for sequence, tokens in zip(made.sequences, path.table.sequences(), strict=True):
        last = tokens.start + sequence.answers[-1][1] - 1
        assert (lengths[last : tokens.stop] == 0).all()
        assert (lengths[tokens.start : last] > 0).double().mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("where", ["forward 3", "answers 5", "answers 3", "expert 2.text.3"])
def test_stopped_anywhere_a_run_by_answers_goes_on_to_the_same_bytes(
    where: str, sequences: list[EncodedSample], tmp_path: Path
) -> None:
    def files(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}

    job = Job(NANO_DIRECTORY, tmp_path / "whole", TABLES, Recipe(by_answers=True), sequences)
    reports = quantize_checkpoint(job)
    assert all(0 < report.down_error < 0.5 for report in reports.values())
    stops: list[str] = []
    other = dataclasses.replace(
        job,
        out=tmp_path / "other",
        on_unit=lambda unit, _done, _all: stops.append(unit),
        should_stop=lambda: stops[-1] == where,
    )
    with pytest.raises(Stopped, match="units"):
        quantize_checkpoint(other)
    quantize_checkpoint(dataclasses.replace(job, out=tmp_path / "other", resume="required"))
    assert files(job.out) == files(other.out)
