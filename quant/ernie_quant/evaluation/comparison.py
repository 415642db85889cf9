"""Compares one turn of two models: divergence where the answer is written, experts chosen, both answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray

from ernie_calibration.generated import LONG_KINDS
from ernie_calibration.sample import SampleTurn
from ernie_calibration.scoring import METRIC_OF_KIND, box_overlap, exact_match, score
from ernie_local.errors import ErnieLocalError, ModelUnusable
from ernie_local.media.tokens import TEXT, VisionRule, token_types
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.moe import served_tokens
from ernie_local.sampling import overflow_hint
from ernie_quant.evaluation.observation import Observation, ZoomedAnswer

# Logits of the original's vocabulary take 0.8 MB a row in float64.
_ROWS_AT_A_TIME = 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """divergence: (positions,) nats; agrees: (positions,), whether both have the same most likely token.

    same_experts: (MoE layers, banks) sums over tokens of the share of chosen experts that are the same;
    bank_tokens: (banks,), the tokens of each. zoomed: the answers of the reference and of the other model
    with the zoom tool; None of a turn that needs no closer look.
    """

    document: str
    turn: SampleTurn
    divergence: NDArray[numpy.float64]
    agrees: NDArray[numpy.bool_]
    same_experts: NDArray[numpy.float64]
    bank_tokens: NDArray[numpy.int64]
    reference_answer: str
    answer: str
    zoomed: tuple[ZoomedAnswer, ZoomedAnswer] | None

    @property
    def is_question(self) -> bool:
        """Whether exactly one short answer is right; long answers never match to the letter."""
        return self.turn.kind not in LONG_KINDS

    @property
    def exact(self) -> tuple[bool, bool]:
        """Whether the answers of the reference and of the other model are right to the letter."""
        expected = self.turn.answer
        return bool(exact_match(self.reference_answer, expected)), bool(exact_match(self.answer, expected))

    @property
    def scores(self) -> tuple[float, float]:
        """Scores of both answers by the measure of the turn's kind."""
        kind, expected = self.turn.kind, self.turn.answer
        return score(kind, self.reference_answer, expected), score(kind, self.answer, expected)

    @property
    def zoomed_scores(self) -> tuple[float, float] | None:
        """The same with the zoom tool; None of a turn that needs no closer look."""
        if self.zoomed is None:
            return None
        kind, expected = self.turn.kind, self.turn.answer
        before, after = (score(kind, each.text, expected) for each in self.zoomed)
        return before, after

    @property
    def overlaps(self) -> tuple[float, float] | None:
        """Overlaps of both answers' boxes with the expected one; None of a turn that asks for no box."""
        if METRIC_OF_KIND[self.turn.kind] != "box":
            return None
        expected = self.turn.answer
        return box_overlap(self.reference_answer, expected), box_overlap(self.answer, expected)


def compare_turn(
    reference: Observation, other: Observation, heads: tuple[ErnieModel, ErnieModel], vision_rule: VisionRule
) -> Comparison:
    """Compare what two models did with the same turn. heads: of the reference and of the other model.

    ModelUnusable if their inputs differ; ErnieLocalError if the divergence is not finite.
    """
    asked, read, config = reference.asked, other.asked, heads[1].config
    first, second = ((each.document, each.turn, each.prompt_identity) for each in (asked, read))
    if first != second:
        raise ModelUnusable(
            f"{read.document}: the checkpoint reads {len(read.token_ids)} tokens that are not the "
            f"{len(asked.token_ids)} of the reference",
            "its tokenizer, chat template or settings for images differ",
            "copy these files from the reference",
        )
    differences, agreements = [], []
    for start in range(0, len(reference.states), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        with torch.no_grad():
            expected, found = (
                head.logits(observed.states[rows].to(head.device)).cpu()
                for head, observed in zip(heads, (reference, other), strict=True)
            )
        differences.append(divergence(expected, found))
        agreements.append(expected.argmax(dim=-1) == found.argmax(dim=-1))
    different = torch.cat(differences)
    if not bool(different.isfinite().all()):
        raise ErnieLocalError(
            f"{asked.document}: the divergence is {float(different.sum())}, not a number",
            "weights or activations overflowed in one of the two models",
            overflow_hint(min((head.dtype for head in heads), key=lambda dtype: dtype.itemsize)),
        )
    is_vision = token_types(asked.token_ids, config.media_ids, vision_rule) != TEXT
    same = same_experts(reference.choices, other.choices)  # (MoE layers, tokens)
    in_bank = is_vision.new_empty(len(is_vision), len(config.text.banks))
    for column, bank in enumerate(config.text.banks):
        in_bank[:, column] = served_tokens(bank, is_vision)
    return Comparison(
        document=asked.document,
        turn=asked.turn,
        divergence=different.numpy(),
        agrees=torch.cat(agreements).numpy(),
        same_experts=(same @ in_bank.double()).numpy(),
        bank_tokens=in_bank.sum(dim=0).numpy(),
        reference_answer=asked.answer,
        answer=read.answer,
        zoomed=None if asked.zoomed is None or read.zoomed is None else (asked.zoomed, read.zoomed),
    )


def same_experts(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The share of each token's experts that both chose, in any order: (..., tokens, top_k) of each,
    -> (..., tokens) float64.
    """
    return (first[..., :, None] == second[..., None, :]).any(dim=-1).double().mean(dim=-1)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(reference || other) in nats of each row of logits: (rows, vocab) each -> (rows,) float64.

    In float64, because near zero float32 gives more rounding error than divergence.
    """
    first = torch.log_softmax(reference.double(), dim=-1)  # (rows, vocab)
    second = torch.log_softmax(other.double(), dim=-1)
    return (first.exp() * (first - second)).sum(dim=-1).clamp(min=0.0)
