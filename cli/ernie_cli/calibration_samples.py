"""Draws the samples of a calibration: generated ones, a folder of the user's, or both, as token sequences.

A file that cannot be read is found here, before any work is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from ernie_cli.console import Console
from ernie_cli.options import MOST_SAMPLES, FamilyName, file_option, option, seed_option
from ernie_local.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ernie_calibration.sample import Sample
    from ernie_calibration.sequences import EncodedSample
    from ernie_local.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What to calibrate on: samples of the folder first, then generated ones."""

    samples: int = option(
        default=300,
        metavar="N",
        min=0,
        max=MOST_SAMPLES,
        help="Number of generated documents, charts and texts.",
    )
    seed: int = seed_option()
    family: Literal["all", "skills", FamilyName] = option(
        default="all",
        help="Kind of generated samples. nano reads small images only. fields: places and JSON; clips: short "
        "videos; closeups: calls of the zoom tool; skills: these three with images and texts.",
    )
    calib: Path | None = file_option(
        metavar="DIR",
        help="Also calibrate on the images of DIR, with .txt or .json answers of the same names.",
    )


def check_samples(options: SampleOptions, method: str) -> None:
    """UsageError for samples that would not be read, or none where they are needed; costs nothing."""
    if method != "gptq" and options.calib is not None:
        raise UsageError(
            f"--calib {options.calib} with --method {method}",
            f"{method} looks at weights alone and reads no samples",
            "remove --calib, or use --method gptq",
        )
    if method == "gptq" and options.samples == 0 and options.calib is None:
        raise UsageError(
            "--samples 0 without --calib: 0 samples, at least 1 is needed",
            "gptq calibrates on the tokens that run through the model",
            "add --calib DIR, or remove --samples",
        )


def families_for(
    name: str, config: ModelConfig, mixes: Mapping[str, Sequence[FamilyName]], console: Console
) -> Sequence[FamilyName]:
    """The families that `name` stands for, one of them or of `mixes`, as far as the model reads them.

    A model that reads only text gets the texts of a mix, and a line says so; UsageError for a family or a mix
    that it cannot read at all.
    """
    families = mixes.get(name, (cast("FamilyName", name),))
    if config.reads_images or name == "texts":
        return families
    if name not in mixes or "texts" not in families:
        raise UsageError(
            f"--family {name} with a model that reads only text",
            "each sample of it has an image or a video",
            "--family texts",
        )
    others = ", ".join(family for family in dict.fromkeys(families) if family != "texts")
    console.note(f"the model reads only text: samples are texts, without {others}")
    return ("texts",)


def draw_sequences(model: Path, options: SampleOptions, console: Console) -> list[EncodedSample]:
    """Every sample as the tokens that `model` sees. InputUnreadable for a file that cannot be read.

    Skips a sample longer than the model's context, with a warning; DoesNotFit if none is left.
    """
    from ernie_calibration.sequences import SampleEncoder
    from ernie_local.config import read_config

    config = read_config(model)
    samples = _samples(options, config, console)
    encoder = SampleEncoder.of_model(model)
    context = config.text.max_position_embeddings
    sequences: list[EncodedSample] = []
    with console.working("drawing samples"):
        for index, sample in enumerate(samples):
            if options.calib is None:
                console.status.show("drawing samples", index, options.samples)
            encoded = encoder.encode(sample)
            length = len(encoded.token_ids)
            if length <= context:
                sequences.append(encoded)
            else:
                console.warn(
                    f"skipped: {sample.name} ({length:,} tokens, the model's context has {context:,})"
                )
    if not sequences:
        raise DoesNotFit(
            f"0 samples fit into the model's context of {context:,} tokens, at least 1 is needed",
            "second moments come from the tokens that run through the model",
            "use smaller images or shorter texts, or more --samples",
        )
    if config.reads_images and not any(encoded.patches for encoded in sequences):
        console.warn(
            "no sample has an image: vision experts will see no calibration token; "
            "--family images or documents, or --calib DIR, adds some"
        )
    num_tokens = sum(len(encoded.token_ids) for encoded in sequences)
    console.note(f"calibrating on {len(sequences)} samples, {num_tokens:,} tokens")
    return sequences


def _samples(options: SampleOptions, config: ModelConfig, console: Console) -> Iterable[Sample]:
    """UsageError for samples that the model cannot read, before any is drawn."""
    from ernie_calibration.documents import missing_languages
    from ernie_calibration.folder import folder_samples
    from ernie_calibration.generated import MIX, SKILL_MIX, generated_samples

    if options.calib is not None and not config.reads_images:
        raise UsageError(
            f"--calib {options.calib} with a model that reads only text",
            "the folder is read for its images",
            "remove --calib: generated texts are drawn",
        )
    families = families_for(options.family, config, {"all": MIX, "skills": SKILL_MIX}, console)
    if options.samples and "documents" in families:
        for line in missing_languages():
            console.note(line)
    generated = generated_samples(options.samples, options.seed, families=families)
    if options.calib is None:
        return generated
    return chain(folder_samples(options.calib, console.warn), generated)
