"""Checkpoints of nano against nano: what is scored where, and controls on both sides of the truth."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_calibration.generated import held_out_samples
from ernie_calibration.scoring import score
from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import ErnieLocalError, ModelUnusable, UsageError
from ernie_local.loading import LoadedModel
from ernie_quant.evaluation.comparison import compare_turn, same_experts
from ernie_quant.evaluation.observation import Observation, Observer
from ernie_quant.evaluation.reference import load_head
from ernie_quant.evaluation.run import (
    Evaluation,
    EvaluationJob,
    Result,
    check_comparable,
    find_candidate,
)
from tests.conftest import PackNano
from tests.rounding import same_figures

SAMPLES = 3


def job(cache: Path | None = None, **changes: Any) -> EvaluationJob:
    plain = EvaluationJob(
        find_candidate("nano"), SAMPLES, 0, ("images",), 1, "known", "cpu", "float32", cache
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "nano.safetensors"


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    """What `evaluation` tells of its progress."""
    return []


@pytest.fixture(scope="module")
def evaluation(cache: Path, told: list[tuple[str, int, int]]) -> Evaluation:
    return Evaluation(job(cache, on_sample=lambda *each: told.append(each)))


@pytest.fixture(scope="module")
def near(evaluation: Evaluation, rounded: Path) -> Result:
    return evaluation.evaluate(find_candidate(str(rounded)))


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return ernie_local.load("nano")


@pytest.fixture(scope="module")
def observed(nano: LoadedModel) -> list[Observation]:
    observer = Observer(nano)
    samples = observer.observe(
        held_out_samples(SAMPLES), lambda _index, turn, _own: observer.encode(turn.answer)
    )
    return [observation for observations in samples for observation in observations]


@pytest.fixture(scope="module")
def rounded(pack_nano: PackNano) -> Path:
    return pack_nano(FormatChoice("w2"))


def copy_with(out: Path, change: Any) -> Path:
    """nano with its tensors changed in place by `change(name, tensors)`."""
    shutil.copytree(NANO_DIRECTORY, out)
    for path in out.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            change(name, tensors)
        save_file(tensors, path)
    return out


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of layers 2 to 5 in each other's places: every value is right, in the wrong place."""

    def move(name: str, tensors: dict[str, torch.Tensor]) -> None:
        match = re.fullmatch(r"(.*layers\.[2-5]\.mlp\.experts\.)(\d+)(.*)", name)
        if match is None or int(match[2]) % 4 >= 2:
            return
        # Of every four the first two with the last two, where both lie in this file.
        other = f"{match[1]}{int(match[2]) + 2}{match[3]}"
        if other in tensors:
            tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()

    return copy_with(tmp_path_factory.mktemp("permuted") / "nano", move)


def test_states_are_those_of_one_pass_over_prompt_and_right_answer(
    nano: LoadedModel, observed: list[Observation]
) -> None:
    """A row for each id of the answer and one for its end: nothing of what a chat fills in before."""
    turns = [(sample, turn) for sample in held_out_samples(SAMPLES) for turn in sample.turns]
    assert len(turns) == len(observed) == SAMPLES + 1
    for (sample, turn), seen in zip(turns, observed, strict=True):
        assert (seen.asked.document, seen.asked.turn) == (sample.name, turn)
        assert nano.tokenizer.decode(seen.asked.forced_ids) == turn.answer
        num_prompt = len(seen.asked.token_ids) - len(seen.asked.forced_ids)
        tail = nano.tokenizer.decode(seen.asked.token_ids[num_prompt - 8 : num_prompt])
        assert tail.endswith("\n\n</think>\n\n")
        logits = nano.logits(seen.asked.token_ids, sample.images)
        expected = logits[num_prompt - 1 :]
        found = nano.network.logits(seen.states)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-3)
        choices = torch.stack(nano.router_choices(seen.asked.token_ids, sample.images)[1:])
        assert float(same_experts(seen.choices, choices).mean()) > 0.999


def test_own_answers_are_those_of_a_chat(nano: LoadedModel, observed: list[Observation]) -> None:
    images = {sample.name: sample.images for sample in held_out_samples(SAMPLES)}
    for seen in observed:
        chat = ernie_local.Chat(nano)
        pieces = chat.ask(
            seen.asked.turn.question, images=images[seen.asked.document], thinking=False, max_tokens=400
        )
        assert seen.asked.answer == "".join(piece.text for piece in pieces)


def test_a_checkpoint_against_itself_differs_in_nothing(evaluation: Evaluation) -> None:
    summary = evaluation.evaluate(find_candidate("nano")).summary
    assert summary.divergence.mean.value == summary.divergence.percent_99 == 0.0
    assert (summary.divergence.top1.low, summary.divergence.top1.value) == (1.0, 1.0)
    assert summary.routing_agreement == 1.0
    assert (summary.answers.right_to_wrong, summary.answers.wrong_to_right) == (0, 0)
    assert summary.answers.exact == summary.answers.reference_exact > 0
    assert summary.answers.questions == SAMPLES
    assert all(task.score == task.reference_score for task in summary.tasks)


def test_permuted_experts_are_found_far_off_and_rounded_ones_near(
    evaluation: Evaluation, permuted: Path, near: Result
) -> None:
    far = evaluation.evaluate(find_candidate(str(permuted)))
    assert 0.0 < near.summary.divergence.mean.value < 0.3
    assert far.summary.divergence.mean.low > 5 * near.summary.divergence.mean.high
    assert far.summary.divergence.top1.value < near.summary.divergence.top1.value
    assert far.summary.answers.exact < near.summary.answers.exact
    # Nothing has changed before the routers of layer 2: its own experts come behind them.
    by_layer = {(each.layer, each.bank): each.agreement for each in far.summary.routing}
    assert all(by_layer[layer, bank] == 1.0 for layer in (1, 2) for bank in ("text", "vision"))
    assert all(by_layer[layer, bank] < 0.9 for layer in (3, 4, 5) for bank in ("text", "vision"))
    check_sums(far)


def check_sums(result: Result) -> None:
    """The summary is what one gets from the turns by hand."""
    turns, summary = result.comparisons, result.summary
    pooled = numpy.concatenate([each.divergence for each in turns])
    assert summary.divergence.positions == len(pooled) == sum(task.positions for task in summary.tasks)
    assert summary.divergence.mean.value == pytest.approx(pooled.mean())
    assert summary.divergence.median == pytest.approx(
        numpy.sort(pooled)[[len(pooled) // 2 - (len(pooled) % 2 == 0), len(pooled) // 2]].mean()
    )
    questions = [each for each in turns if each.turn.kind != "transcript"]
    assert summary.answers.exact == sum(each.answer == each.turn.answer for each in questions)
    assert summary.answers.right_to_wrong == sum(
        each.reference_answer == each.turn.answer != each.answer for each in questions
    )
    for task in summary.tasks:
        scores = [
            score(each.turn.kind, each.answer, each.turn.answer)
            for each in turns
            if each.turn.kind == task.kind
        ]
        assert task.score == pytest.approx(sum(scores) / len(scores))
    tokens = {(each.layer, each.bank): each.tokens for each in summary.routing}
    assert tokens[1, "text"] == tokens[5, "text"] != tokens[1, "vision"]


def test_same_experts_are_counted_as_sets() -> None:
    first = torch.tensor([[[0, 1, 2], [3, 4, 5]]])
    second = torch.tensor([[[2, 0, 1], [3, 9, 8]]])
    assert same_experts(first, second).tolist() == [[1.0, pytest.approx(1 / 3)]]


def test_kept_results_are_used_again_and_say_the_same(
    near: Result, cache: Path, rounded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = ernie_local.load

    def watched(path: Path, **rest: Any) -> LoadedModel:
        loaded.append(path.name)
        return load(path, **rest)

    monkeypatch.setattr(ernie_local, "load", watched)
    again = Evaluation(job(cache)).evaluate(find_candidate(str(rounded)))
    assert loaded == ["w2"]
    assert same_figures(dataclasses.asdict(again.summary), dataclasses.asdict(near.summary))


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"samples": SAMPLES + 1}, "samples"),
        ({"seed": 3}, "samples"),
        ({"answers": "reference"}, "samples"),
        ({"families": ("texts",)}, "samples"),
        ({"dtype": "bfloat16"}, "computing"),
    ],
)
def test_kept_results_of_other_work_are_refused(
    evaluation: Evaluation, cache: Path, changes: dict[str, Any], differing: str
) -> None:
    with pytest.raises(UsageError, match=f"{differing} differ"):
        Evaluation(job(cache, **changes))


def test_kept_results_of_another_model_or_damaged_ones_are_refused(
    evaluation: Evaluation, cache: Path, permuted: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="source differ"):
        Evaluation(job(cache, reference=find_candidate(str(permuted))))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(cache.read_bytes()[:-10])
    with pytest.raises(UsageError, match="not a file of a reference's results"):
        Evaluation(job(damaged))
    with pytest.raises(UsageError, match="cannot be written"):
        Evaluation(job(tmp_path / "missing" / "file"))


@pytest.mark.slow
def test_one_model_is_in_memory_at_a_time(
    rounded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alive: list[weakref.ref[object]] = []
    load = ernie_local.load

    def watched(*arguments: Any, **rest: Any) -> LoadedModel:
        assert [ref() for ref in alive] == [None] * len(alive)
        model = load(*arguments, **rest)
        alive.append(weakref.ref(model.network))
        return model

    monkeypatch.setattr(ernie_local, "load", watched)
    gc.disable()  # nothing may wait for the collector
    try:
        evaluation = Evaluation(job(samples=1))
        for _ in range(2):
            evaluation.evaluate(find_candidate(str(rounded)))
    finally:
        gc.enable()
    assert len(alive) == 3


@pytest.mark.slow
def test_answers_of_the_reference_are_what_checkpoints_read(permuted: Path) -> None:
    """A reference that answers wrongly is followed to where it would have gone."""
    evaluation = Evaluation(job(reference=find_candidate(str(permuted)), answers="reference", samples=1))
    result = evaluation.evaluate(find_candidate("nano"))
    model = ernie_local.load("nano")
    for each in result.comparisons:
        ids = model.tokenizer.encode(each.reference_answer, allow_special=False)
        assert len(each.divergence) == len(ids) + 1
    assert any(each.reference_answer != each.turn.answer for each in result.comparisons)


@pytest.mark.parametrize("name", ["nano", "rounded", "tiny"])
def test_the_head_alone_is_the_models_own(name: str, rounded: Path, tiny_checkpoint: Path) -> None:
    directory = {"nano": NANO_DIRECTORY, "rounded": rounded, "tiny": tiny_checkpoint}[name]
    model = ernie_local.load(directory)
    states = torch.randn(5, model.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    head = load_head(directory, "float32", "cpu")
    assert torch.equal(head.logits(states), model.network.logits(states))
    assert len(head.layers) == 0
    assert any(parameter.is_meta for parameter in head.parameters())


def test_another_model_or_other_files_are_told(
    tiny_checkpoint: Path,
    nano: LoadedModel,
    observed: list[Observation],
    evaluation: Evaluation,
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelUnusable, match="has vocab_size 96, the reference 503"):
        check_comparable(find_candidate("nano"), find_candidate(str(tiny_checkpoint)))
    other = dataclasses.replace(
        observed[0], asked=dataclasses.replace(observed[0].asked, prompt_identity="other")
    )
    with pytest.raises(ModelUnusable, match="tokenizer, chat template or settings for images"):
        compare_turn(observed[0], other, (nano.network, nano.network), "tags")
    shutil.copytree(NANO_DIRECTORY, tmp_path / "nano")
    settings = tmp_path / "nano" / "preprocessor_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ModelUnusable, match="tokens that are not"):
        evaluation.evaluate(find_candidate(str(tmp_path / "nano")))


def test_logits_that_are_no_numbers_are_an_error(nano: LoadedModel, observed: list[Observation]) -> None:
    broken = observed[0].states.clone()
    broken[0, 0] = float("nan")
    other = dataclasses.replace(observed[0], states=broken)
    with pytest.raises(ErnieLocalError, match="not a number"):
        compare_turn(observed[0], other, (nano.network, nano.network), "tags")


def test_progress_is_told_after_each_sample(
    near: Result, rounded: Path, told: list[tuple[str, int, int]]
) -> None:
    for name in ("nano", str(rounded)):
        own = [each for each in told if each[0] == name]
        assert own[:SAMPLES] == [(name, number, SAMPLES) for number in range(1, SAMPLES + 1)]
    assert told[:SAMPLES] == [each for each in told if each[0] == "nano"][:SAMPLES]


def test_texts_have_no_exact_answers_and_no_vision_tokens(rounded: Path) -> None:
    texts = job(families=("texts",), samples=1)
    summary = Evaluation(texts).evaluate(find_candidate(str(rounded))).summary
    assert (summary.answers.questions, summary.answers.exact_share, summary.answers.p_value) == (0, None, 1.0)
    assert [task.kind for task in summary.tasks] == ["text"]
    assert {each.bank for each in summary.routing} == {"text"}
    assert summary.divergence.mean.value > 0
