"""What a calibration is made on: generated samples, a folder of the user's, or both, as token sequences.

Owns where they come from and the lines that say so. A file that cannot be read is known here, before work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_local.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from ernie_calibration.sample import Sample
    from ernie_quant.probe import AnsweredSequence


@dataclass(frozen=True, slots=True)
class SampleChoice:
    """`num_generated` samples of `family`, or of all mixed, drawn by `seed`; those of `folder` before."""

    num_generated: int
    seed: int
    folder: Path | None
    family: str = "all"


def check_choice(choice: SampleChoice, method: str) -> None:
    """UsageError for samples that nobody would read, or none where they are needed; costs nothing."""
    if method != "gptq" and choice.folder is not None:
        raise UsageError(
            f"--calib {choice.folder} with --method {method}",
            f"{method} looks at weights alone and would not read it",
            "leave --calib out, or use --method gptq",
        )
    if method == "gptq" and choice.num_generated == 0 and choice.folder is None:
        raise UsageError(
            "--samples 0 without --calib: 0 samples, at least 1 is needed",
            "gptq calibrates on the tokens that run through the model",
            "give --calib DIR, or leave --samples out",
        )


def draw_sequences(model: Path, choice: SampleChoice, console: Console) -> list[AnsweredSequence]:
    """Every sample as the tokens that `model` sees. InputUnreadable for a file that cannot be read.

    A sample longer than the model's context is left out, with a line that says so; DoesNotFit if all are.
    """
    from ernie_calibration.sequences import SampleEncoder
    from ernie_local.config import read_config

    encoder = SampleEncoder.of_model(model)
    context = read_config(model).text.max_position_embeddings
    sequences: list[AnsweredSequence] = []
    num_tokens = 0
    for sample in _samples(choice, console):
        encoded = encoder.encode(sample)
        length = len(encoded.token_ids)
        if length > context:
            console.warn(f"left out: {sample.name} ({length:,} tokens, the model's context has {context:,})")
            continue
        sequences.append(encoded)
        num_tokens += length
    if not sequences:
        raise DoesNotFit(
            f"0 samples fit the model's context of {context:,} tokens, at least 1 is needed",
            "second moments come from the tokens that run through the model",
            "give smaller images or shorter texts, or more --samples",
        )
    console.note(f"calibrating on {len(sequences)} samples, {num_tokens:,} tokens")
    return sequences


def _samples(choice: SampleChoice, console: Console) -> Iterator[Sample]:
    from ernie_calibration.documents import missing_languages
    from ernie_calibration.folder import folder_samples
    from ernie_calibration.generated import MIX, generated_samples

    if choice.folder is not None:
        yield from folder_samples(choice.folder, console.warn)
    if choice.num_generated and choice.family in ("all", "documents"):
        for line in missing_languages():
            console.note(line)
    families = MIX if choice.family == "all" else (choice.family,)
    yield from generated_samples(choice.num_generated, choice.seed, families=families)
