"""nano's figures: what counts as a right answer about small print, and the card that tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ernie_calibration.sample import Sample, SampleTurn
from ernie_calibration.skills.samples import SMALL_PRINT
from ernie_quant.evaluation.observation import ZoomedAnswer
from nano import evaluate
from nano.model_card import card

ASKED = (
    ("wrong", ZoomedAnswer("right", has_zoomed=True)),
    ("right", ZoomedAnswer("wrong", has_zoomed=True)),
    ("wrong", ZoomedAnswer("right", has_zoomed=False)),
    ("wrong", ZoomedAnswer("", has_zoomed=False)),
)


def observation(turn: SampleTurn, answer: str, zoomed: ZoomedAnswer | None) -> SimpleNamespace:
    return SimpleNamespace(asked=SimpleNamespace(turn=turn, answer=answer, zoomed=zoomed))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, list[float]], int]:
    """What is counted where a model answers as in ASKED, and is right about everything else."""
    turn = SampleTurn("?", "right", SMALL_PRINT)

    class Observer:
        def __init__(self, _model: object, zoom_tokens: int) -> None:
            assert zoom_tokens > 120

        def observe(self, samples: Iterator[Sample], _forced_ids: object) -> Iterator[list[Any]]:
            for sample, (answer, zoomed) in zip(samples, ASKED, strict=True):
                if sample.turns[0].kind == SMALL_PRINT:
                    yield [observation(turn, answer, zoomed)]
                else:
                    turns = [replace(each, kind="total") for each in sample.turns]
                    yield [observation(each, each.answer, None) for each in turns]

    monkeypatch.setattr(evaluate, "Observer", Observer)
    model: Any = None
    return evaluate.count_skills(model, len(ASKED))


def test_only_an_answer_behind_a_look_is_right_with_the_tool(
    counted: tuple[dict[str, list[float]], int],
) -> None:
    counts, num_zoomed = counted
    assert counts["small print"] == [1, 4]
    assert counts["small print, zoomed"] == [1, 4]
    assert num_zoomed == 2
    assert counts["total"][0] == counts["total"][1] > 0


def test_the_card_has_both_figures_and_how_many_looked(
    counted: tuple[dict[str, list[float]], int],
) -> None:
    counts, num_zoomed = counted
    whole = {"right": 1, "asked": 2, "kinds": {"total": [1, 2]}, "skills": counts, "zoomed": num_zoomed}
    page = card({"as trained": whole}, 24_000_000, 500, 4, "")
    assert "| small print | 1 | 4 | 25.0% |\n| small print, zoomed | 1 | 4 | 25.0% |" in page
    assert "2 of 4 conversations" in page
