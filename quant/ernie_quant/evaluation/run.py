"""The whole evaluation: the reference first, then each checkpoint, never two models in memory.

Owns the order of the work and the identity of the reference's results. Prints nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ernie_local
from ernie_calibration.held_out import Family, held_out_samples
from ernie_calibration.sample import Sample, Turn
from ernie_local.loading import LoadedModel
from ernie_quant.evaluation.candidate import Candidate
from ernie_quant.evaluation.comparison import Comparer, Comparison, head_of
from ernie_quant.evaluation.observation import Observation, Observer
from ernie_quant.evaluation.reference import check_place, load_head, load_observations, save_observations
from ernie_quant.evaluation.summary import Summary, summarize
from ernie_quant.identity import source_identity, version_identity

AnswerSource = Literal["known", "reference"]


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """What to evaluate on, and how.

    answers: what models are made to read: what is right, or what the reference wrote. dtype: one for all
    models. cache: a file for the reference's results, used if there, written if not. on_sample: after
    each, the model's name, how many samples it is through, and all.
    """

    reference: Candidate
    samples: int
    seed: int
    families: tuple[Family, ...]
    questions_each: int
    answers: AnswerSource
    device: str
    dtype: str
    cache: Path | None = None
    on_sample: Callable[[str, int, int], None] | None = None
    gpu_kernels: str = "auto"

    def draw(self) -> Iterator[Sample]:
        """The samples; drawn anew for each model, since their images would fill the memory."""
        return held_out_samples(
            self.samples, self.seed, families=self.families, questions_each=self.questions_each
        )

    def load(self, candidate: Candidate) -> LoadedModel:
        """Its weights into memory."""
        return ernie_local.load(
            candidate.directory, device=self.device, dtype=self.dtype, gpu_kernels=self.gpu_kernels
        )

    def told(self, name: str, observed: Iterator[list[Observation]]) -> Iterator[Observation]:
        """The observations one by one; each sample's end is told."""
        for number, observations in enumerate(observed, start=1):
            yield from observations
            if self.on_sample is not None:
                self.on_sample(name, number, self.samples)


@dataclass(frozen=True, slots=True)
class Result:
    """A checkpoint, figures of it, and the turns that they come from."""

    candidate: Candidate
    summary: Summary
    comparisons: list[Comparison]


class Evaluation:
    """The reference's results, and checkpoints against them."""

    def __init__(self, job: EvaluationJob) -> None:
        """Runs the reference, or reads what it did: UsageError where that file is another one's."""
        self._job = job
        identity = self._identity()
        if job.cache is not None and job.cache.exists():
            self._observations = load_observations(job.cache, identity)
        else:
            if job.cache is not None:
                check_place(job.cache)
            self._observations = self._observe_reference()
            if job.cache is not None:
                save_observations(job.cache, identity, self._observations)
        self._head = load_head(job.reference.directory, job.dtype, job.device)

    def evaluate(self, candidate: Candidate) -> Result:
        """Run `candidate` through every turn, hold it against the reference, and sum up."""
        comparisons = self._compare(candidate)
        summary = summarize(comparisons, candidate.config.text, self._job.seed)
        return Result(candidate, summary, comparisons)

    def _compare(self, candidate: Candidate) -> list[Comparison]:
        model = self._job.load(candidate)
        comparer = Comparer(
            head_of(self._head), head_of(model.network), model.config, model.settings.vision_rule
        )
        observed = Observer(model).observe(
            self._job.draw(), lambda index, _turn, _own: self._observations[index].forced_ids
        )
        told = self._job.told(candidate.name, observed)
        return [comparer.compare(*pair) for pair in zip(self._observations, told, strict=True)]

    def _observe_reference(self) -> list[Observation]:
        observer = Observer(self._job.load(self._job.reference))

        def forced_ids(_index: int, turn: Turn, own: str) -> list[int]:
            return observer.encode(turn.answer if self._job.answers == "known" else own)

        observed = observer.observe(self._job.draw(), forced_ids)
        return list(self._job.told(self._job.reference.name, observed))

    def _identity(self) -> dict[str, str]:
        job = self._job
        settings = [job.samples, job.seed, job.families, job.questions_each, job.answers]
        return {
            "source": source_identity(job.reference.directory),
            "samples": hashlib.sha256(json.dumps(settings).encode()).hexdigest(),
            "computing": f"{job.device} {job.dtype} {job.gpu_kernels}",
            "version": version_identity(),
        }
