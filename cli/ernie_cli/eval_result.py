"""The object of `ernie-local eval --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from ernie_cli.json_object import fill_result
from ernie_cli.options import FamilyName, KVDTypeName
from ernie_quant.evaluation.summary import Answers, Divergence, RoutingAgreement, Task

if TYPE_CHECKING:
    from ernie_quant.evaluation.run import EvaluationJob
    from ernie_quant.evaluation.run import Result as Evaluated


@dataclass
class FlipObject:
    """A question that only one of the two answers rightly."""

    document: str
    kind: Annotated[str, "turn.kind"]
    question: Annotated[str, "turn.question"]
    expected: Annotated[str, "turn.answer"]
    reference_answer: str
    answer: str


@dataclass
class CandidateObject:
    """A model that is compared."""

    name: str  #: As given.
    directory: str
    bytes: Annotated[int, "num_bytes"]  #: Of its weights.
    routed_bits: float | None  #: Bits per weight of its routed experts; null without any.


@dataclass
class CheckpointObject(CandidateObject):
    """What a checkpoint lost."""

    divergence: Divergence
    answers: Answers
    tasks: list[Task]  #: By kind of turn.
    routing: list[RoutingAgreement]  #: By layer and bank.
    routing_agreement: float | None
    """The same over all layers and banks, weighted by tokens; null without experts."""
    flips: list[FlipObject]  #: Questions that only one of the two answers rightly.


@dataclass
class EvalResult:
    """One object, whatever the end of the run. Checkpoints that were finished before an error are in it."""

    samples: int | None = None  #: Held-out samples.
    seed: int | None = None  #: Which samples.
    families: list[FamilyName] | None = None  #: Kinds of samples, in turn.
    questions_each: int | None = None  #: Most questions per sample.
    answers: Literal["known", "reference"] | None = None
    """What the models were made to read: `known`, the right answers, or `reference`, those that it gave."""
    device: str | None = None  #: What all models were computed on.
    dtype: str | None = None  #: What all models were computed in.
    kv_dtype: KVDTypeName | None = None  #: Of the KV caches of the checkpoints, as asked for.
    gpu_kernels: Literal["auto", "triton", "torch"] | None = None  #: As asked for.
    reference: CandidateObject | None = None  #: The unquantized model.
    checkpoints: list[CheckpointObject] = field(default_factory=list)  #: One for each, in the order given.

    def update(self, job: EvaluationJob, evaluated: Sequence[Evaluated]) -> None:
        """Fill in what is known when these checkpoints are finished."""
        self.samples, self.seed, self.families = job.samples, job.seed, list(job.families)
        self.questions_each, self.answers = job.questions_each, job.answers
        self.device, self.dtype = job.device, job.dtype
        self.kv_dtype = job.kv_dtype  # type: ignore[assignment]
        self.gpu_kernels = job.gpu_kernels  # type: ignore[assignment]
        self.reference = fill_result(CandidateObject, job.reference, directory=str(job.reference.directory))
        self.checkpoints = [_checkpoint(one) for one in evaluated]


def _checkpoint(evaluated: Evaluated) -> CheckpointObject:
    flips = [each for each in evaluated.comparisons if each.is_question and len(set(each.exact)) == 2]
    return fill_result(
        CheckpointObject,
        evaluated.summary,
        evaluated.candidate,
        directory=str(evaluated.candidate.directory),
        flips=flips,
    )
