"""Print that is too small, asked as a user with the zoom tool asks, and what an evaluation makes of it."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from ernie_calibration.generated import held_out_samples
from ernie_calibration.sample import Sample, SampleTurn
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.loading import LoadedModel
from ernie_local.media.processor import image_to_patches
from ernie_local.model_files import ModelFiles
from ernie_quant.evaluation import observation
from ernie_quant.evaluation.comparison import Comparison
from ernie_quant.evaluation.observation import ZoomedAnswer, answer_with_zoom
from ernie_quant.evaluation.run import Evaluation, EvaluationJob, find_candidate
from ernie_quant.evaluation.summary import Task, summarize_comparisons
from tests.runtime.conftest import ScriptedEngine, ScriptedModel

COLOURS = ("red", "green", "blue", "black")
FILES = ModelFiles(NANO_DIRECTORY, read_config(NANO_DIRECTORY))


def call(*box: int) -> str:
    arguments = {"bbox_2d": list(box), "label": "Lyon"}
    written = json.dumps({"name": "image_zoom_in_tool", "arguments": arguments})
    return f"too small\n</think>\n\n<tool_call>\n{written}\n</tool_call>\n"


def scripted(*says: str) -> tuple[Any, ScriptedEngine]:
    """A model that says this, round by round, if its likeliest tokens are taken."""
    model: Any = ScriptedModel(FILES.tokenizer, NANO_DIRECTORY, 4000, FILES.config.media)
    model.files.generation_config = {"do_sample": True, "temperature": 9.0}
    engine = model.engine()
    engine.say(*says)
    model.engine = lambda: engine
    return model, engine


def quarters() -> Image.Image:
    """A page of four colours, of more pixels than the model sees of it."""
    page = Image.new("RGB", (448, 448))
    for index, colour in enumerate(COLOURS):
        row, column = divmod(index, 2)
        page.paste(colour, (224 * column, 224 * row, 224 * column + 224, 224 * row + 224))
    return page


@pytest.mark.parametrize("index", range(4))
def test_a_right_call_shows_the_part_in_the_pixels_of_the_original(index: int) -> None:
    row, column = divmod(index, 2)
    model, engine = scripted(
        call(500 * column, 500 * row, 500 * column + 500, 500 * row + 500), "Lyon 12.50\n</think>\n\n12.50"
    )
    assert answer_with_zoom(model, "Lyon: How much?", [quarters()]) == ZoomedAnswer("12.50", has_zoomed=True)
    (_, [whole]), (_, [part]) = engine.prefills
    of_one_colour = image_to_patches(Image.new("RGB", (224, 224), COLOURS[index]), model.image_processor)
    assert whole.num_tokens == model.image_processor.max_pixels // 28**2
    assert part.grid == of_one_colour.grid
    assert torch.equal(part.pixel_values, of_one_colour.pixel_values)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (("I can read it.\n</think>\n\n12.50",), ZoomedAnswer("12.50", has_zoomed=False)),
        ((call(900, 0, 100, 500), "reversed\n</think>\n\n12.50"), ZoomedAnswer("12.50", has_zoomed=False)),
        (
            (call(900, 0, 100, 500), call(0, 0, 500, 500), "hm\n</think>\n\n12.50"),
            ZoomedAnswer("12.50", has_zoomed=True),
        ),
        ((f"{call(0, 0, 9, 9)}Let me see.", "hm\n</think>\n\n12.50"), ZoomedAnswer("12.50", has_zoomed=True)),
        ((call(0, 0, 500, 500), "\n</think>\n\n"), ZoomedAnswer("", has_zoomed=True)),
        ((call(0, 0, 500, 500),) * 9, ZoomedAnswer("", has_zoomed=True)),
        (("",), ZoomedAnswer("", has_zoomed=False)),
    ],
    ids=["no call", "bad box", "second try", "text beside a call", "silent", "calls on and on", "nothing"],
)
def test_what_counts_is_the_answer_behind_the_last_round(
    says: tuple[str, ...], expected: ZoomedAnswer
) -> None:
    model, _ = scripted(*says)
    assert answer_with_zoom(model, "Lyon: How much?", [quarters()]) == expected


def test_all_rounds_together_have_a_bound() -> None:
    model, engine = scripted(call(0, 0, 500, 500), "x" * 900)
    answer_with_zoom(model, "Lyon: How much?", [quarters()], max_tokens=400)
    num_written = len(engine.ids) - sum(len(ids) for ids, _ in engine.prefills)
    assert len(FILES.tokenizer.encode(call(0, 0, 500, 500))) < num_written <= 400


@pytest.mark.parametrize("end", ["hm\n</think>\n\n12.50", "\n</think>\n\n"])
def test_nothing_of_the_question_keeps_the_model_in_memory(end: str) -> None:
    """The next model has its place; nothing may wait for the collector."""
    model, _ = scripted(call(0, 0, 500, 500), end)
    gc.disable()
    try:
        answer_with_zoom(model, "Lyon: How much?", [quarters()])
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()


# What the models answer with the tool, by their places among those that are asked.
ANSWERS = (
    (ZoomedAnswer("right", True), ZoomedAnswer("right", True), ZoomedAnswer("wrong", False)),
    (ZoomedAnswer("wrong", True), ZoomedAnswer("right", False), ZoomedAnswer("", False)),
)


def shorter(sample: Sample) -> Sample:
    """With an answer that any model can be made to give, and a smaller image, which takes less time."""
    turn = SampleTurn("?", "right", sample.turns[0].kind, rounds=sample.turns[0].rounds)
    return replace(sample, images=(sample.images[0].resize((112, 112)),), turns=(turn,))


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EvaluationJob:
    """Three close-ups, whose answers with the tool are those of ANSWERS, and a page of places."""
    asked: list[str] = []

    def answer(_model: LoadedModel, question: str, images: Sequence[Image.Image], *_: int) -> ZoomedAnswer:
        assert (question, len(images)) == ("?", 1)
        asked.append(question)
        return ANSWERS[(len(asked) - 1) // 3][(len(asked) - 1) % 3]

    def draw(_job: EvaluationJob) -> list[Sample]:
        closeups = map(shorter, held_out_samples(3, families=("closeups",)))
        return [*closeups, *held_out_samples(1, families=("fields",), questions_each=9)]

    monkeypatch.setattr(observation, "answer_with_zoom", answer)
    monkeypatch.setattr(EvaluationJob, "draw", draw)
    nano, families, cache = find_candidate("nano"), ("closeups", "fields"), tmp_path / "cache"
    return EvaluationJob(nano, 4, 0, families, 9, "known", "cpu", "float32", cache)  # type: ignore[arg-type]


def test_figures_with_the_tool_stand_beside_those_without(job: EvaluationJob) -> None:
    Evaluation(job)  # which writes the file that the next one reads
    result = Evaluation(job).evaluate(find_candidate("nano"))
    tasks = {task.kind: task for task in result.summary.tasks}
    assert [kind for kind, task in tasks.items() if task.zoom is not None] == ["small print"]
    task, zoom = tasks["small print"], tasks["small print"].zoom
    assert zoom is not None
    assert (task.reference_score, task.score) == (0.0, 0.0)
    assert (zoom.reference_score, zoom.score) == pytest.approx((2 / 3, 1 / 3))
    assert (zoom.reference_gain, zoom.gain) == (zoom.reference_score, zoom.score)
    assert (zoom.reference_zoomed, zoom.zoomed) == (2, 1)


def task_of(kind: str, expected: str, *answers: tuple[str, str], zoomed: Sequence[str] = ()) -> Task:
    """Of turns that two models answered so. zoomed: what both answered with the tool, if they were asked."""
    turn, banks = SampleTurn("?", expected, kind), len(FILES.config.text.banks)
    layers = sum(FILES.config.text.moe_layers)
    turns = [
        Comparison(
            "page",
            turn,
            divergence=numpy.zeros(1),
            agrees=numpy.ones(1, bool),
            same_experts=numpy.ones((layers, banks)),
            bank_tokens=numpy.ones(banks, int),
            reference_answer=reference,
            answer=answer,
            zoomed=both,
        )
        for (reference, answer), both in zip_longest(answers, [_both(text) for text in zoomed])
    ]
    (task,) = summarize_comparisons(turns, FILES.config.text).tasks
    return task


def _both(text: str) -> tuple[ZoomedAnswer, ZoomedAnswer]:
    return ZoomedAnswer(text[0], has_zoomed=True), ZoomedAnswer(text[1], has_zoomed=True)


def test_the_gain_is_what_the_tool_adds() -> None:
    zoom = task_of("small print", "7", ("7", "8"), ("1", "7"), ("1", "7"), zoomed=("77", "78", "79")).zoom
    assert zoom is not None
    assert (zoom.reference_score, zoom.score) == pytest.approx((1.0, 1 / 3))
    assert (zoom.reference_gain, zoom.gain) == pytest.approx((2 / 3, -1 / 3))
    assert task_of("small print", "7", ("7", "8")).zoom is None


def test_boxes_have_their_mean_overlap_beside_their_score() -> None:
    expected, half = '[{"bbox_2d": [0, 0, 100, 100]}]', '[{"bbox_2d": [0, 0, 100, 50]}]'
    third = '[{"bbox_2d": [50, 0, 150, 100]}]'
    task = task_of("place", expected, (expected, third), (half, "nowhere"))
    assert (task.reference_score, task.reference_overlap) == pytest.approx((1.0, 0.75))
    assert (task.score, task.overlap) == pytest.approx((0.0, 1 / 6))
    other = task_of("total", "7", ("7", "7"))
    assert (other.reference_overlap, other.overlap) == (None, None)
