"""Runs an evaluation: first the reference, then each checkpoint, with one model in memory at a time.

What is wrong with a model's files is told before any of them is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ernie_local
from ernie_calibration.generated import SampleFamily, held_out_samples
from ernie_calibration.sample import Sample, SampleTurn
from ernie_local import defaults
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.parts import model_parts, routed_experts, stored_tensors
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import ModelUnusable
from ernie_local.loading import LoadedModel
from ernie_quant.evaluation.comparison import Comparison, compare_turn
from ernie_quant.evaluation.observation import Observation, Observer
from ernie_quant.evaluation.reference import check_place, load_head, load_observations, save_observations
from ernie_quant.evaluation.summary import Summary, summarize_comparisons
from ernie_quant.work import source_identity, tell_nobody, version_identity


@dataclass(frozen=True, slots=True)
class Candidate:
    """name: as given by the user; routed_bits: bits a weight of the routed experts, None without any."""

    name: str
    directory: Path
    config: ModelConfig
    num_bytes: int
    routed_bits: float | None


def find_candidate(name: str) -> Candidate:
    """ModelUnusable if it is missing or incomplete."""
    directory = resolve_model(name)
    config = read_config(directory)
    parts = model_parts(stored_tensors(open_checkpoint(directory, config).accounts, config), config)
    routed = routed_experts(parts)
    return Candidate(
        name=name,
        directory=directory,
        config=config,
        num_bytes=sum(part.num_bytes for part in parts),
        routed_bits=None if routed is None else routed.bits_per_weight,
    )


def check_comparable(reference: Candidate, other: Candidate) -> None:
    """Raise ModelUnusable unless `other` has all sizes of the reference."""
    if reference.config.reads_images != other.config.reads_images:
        raise ModelUnusable(
            f"{reference.name} and {other.name}: one of them reads images, the other only text",
            "only versions of one model can be compared position by position",
            "name checkpoints made from the reference",
        )
    for part in ("text", "tower", "media_ids") if reference.config.reads_images else ("text",):
        ours, theirs = (dataclasses.asdict(getattr(each.config, part)) for each in (reference, other))
        for key, wanted in ours.items():
            if theirs[key] != wanted:
                raise ModelUnusable(
                    f"{other.name} has {key} {theirs[key]}, the reference {wanted}",
                    "only versions of one model can be compared position by position",
                    "name checkpoints made from the reference",
                )


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """What to evaluate on, and how.

    answers: the answers that models are forced to read, the right ones or those of the reference. dtype: of
    all models. cache: a file of the reference's results, read if it exists, else written. on_sample: called
    after each sample with the model's name, the samples done, and all samples. kv_dtype: of the checkpoints'
    KV caches; that of the reference is the default one. lora: adapters of the checkpoints.
    """

    reference: Candidate
    samples: int
    seed: int
    families: tuple[SampleFamily, ...]
    questions_each: int
    answers: Literal["known", "reference"]
    device: str
    dtype: str
    cache: Path | None = None
    on_sample: Callable[[str, int, int], None] = tell_nobody
    gpu_kernels: str = "auto"
    kv_dtype: str = defaults.AUTO
    lora: tuple[str, ...] = ()

    def draw(self) -> Iterator[Sample]:
        """The samples, drawn again for each model, because their images would fill the memory."""
        return held_out_samples(
            self.samples, self.seed, families=self.families, questions_each=self.questions_each
        )

    def load(
        self, candidate: Candidate, kv_dtype: str = defaults.AUTO, lora: Sequence[str] = ()
    ) -> LoadedModel:
        """Load its weights; kv_dtype: of its KV cache; lora: adapters, as of LoadOptions."""
        model = ernie_local.load(
            candidate.directory,
            device=self.device,
            dtype=self.dtype,
            kv_dtype=kv_dtype,
            gpu_kernels=self.gpu_kernels,
            lora=lora,
        )
        model.wait_until_resident()  # a damaged page would else be found hours later, or never
        return model

    def told(self, name: str, observed: Iterator[list[Observation]]) -> Iterator[Observation]:
        """The observations one by one; calls `on_sample` at the end of each sample."""
        for number, observations in enumerate(observed, start=1):
            yield from observations
            self.on_sample(name, number, self.samples)


@dataclass(frozen=True, slots=True)
class Result:
    """A checkpoint, its figures, and the turns that they come from."""

    candidate: Candidate
    summary: Summary
    comparisons: list[Comparison]


class Evaluation:
    """The reference's results, and checkpoints against them."""

    def __init__(self, job: EvaluationJob) -> None:
        """Run the reference, or read its results; UsageError if that file belongs to another reference."""
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
        model = self._job.load(candidate, self._job.kv_dtype, self._job.lora)
        observed = Observer(model).observe(
            self._job.draw(), lambda index, _turn, _own: self._observations[index].asked.forced_ids
        )
        comparisons = [
            compare_turn(*pair, (self._head, model.network), model.settings.vision_rule)
            for pair in zip(self._observations, self._job.told(candidate.name, observed), strict=True)
        ]
        summary = summarize_comparisons(comparisons, candidate.config.text, self._job.seed)
        return Result(candidate, summary, comparisons)

    def _observe_reference(self) -> list[Observation]:
        observer = Observer(self._job.load(self._job.reference))

        def forced_ids(_index: int, turn: SampleTurn, own: str) -> list[int]:
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
