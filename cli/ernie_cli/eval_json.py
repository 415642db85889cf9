"""The object that `ernie-local eval --json` prints: its shape, described in docs/eval-json.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_quant.evaluation.candidate import Candidate
    from ernie_quant.evaluation.comparison import Comparison
    from ernie_quant.evaluation.run import EvaluationJob, Result

SCHEMA = "ernie-local.eval/1"


def empty_object() -> dict[str, object]:
    """The object of a run that has compared nothing."""
    return {
        "schema": SCHEMA,
        "ok": False,
        "samples": None,
        "seed": None,
        "families": None,
        "questions_each": None,
        "answers": None,
        "device": None,
        "dtype": None,
        "gpu_kernels": None,
        "reference": None,
        "checkpoints": [],
        "error": None,
    }


def result_fields(job: EvaluationJob, results: Sequence[Result]) -> dict[str, object]:
    """The keys that a run has filled when these checkpoints are through."""
    return {
        "samples": job.samples,
        "seed": job.seed,
        "families": list(job.families),
        "questions_each": job.questions_each,
        "answers": job.answers,
        "device": job.device,
        "dtype": job.dtype,
        "gpu_kernels": job.gpu_kernels,
        "reference": _model(job.reference),
        "checkpoints": [_checkpoint(result) for result in results],
    }


def _model(candidate: Candidate) -> dict[str, object]:
    return {
        "name": candidate.name,
        "directory": str(candidate.directory),
        "bytes": candidate.num_bytes,
        "routed_bits": candidate.routed_bits,
    }


def _checkpoint(result: Result) -> dict[str, object]:
    from dataclasses import asdict

    flips = [each for each in result.comparisons if each.is_question and len(set(each.exact)) == 2]
    return {
        **_model(result.candidate),
        **asdict(result.summary),
        "flips": [_flip(each) for each in flips],
    }


def _flip(comparison: Comparison) -> dict[str, object]:
    turn = comparison.turn
    return {
        "document": comparison.document,
        "kind": turn.kind,
        "question": turn.question,
        "expected": turn.answer,
        "reference_answer": comparison.reference_answer,
        "answer": comparison.answer,
    }
