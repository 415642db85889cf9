"""The measurements of a model on some samples: made, or read from the file that keeps them.

Owns when a file still holds for a model. The pass itself is probe.py's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import UsageError
from ernie_quant.identity import calibration_identity, source_identity, version_identity
from ernie_quant.measurements import Measurements, read_measurements, write_measurements
from ernie_quant.probe import AnsweredSequence, Probe, probe_sequences

MOST_TOKENS = 4096  # in every copy: two for each layer


def measurements_in(
    path: Path,
    source: Path,
    sequences: Sequence[AnsweredSequence],
    on_layer: Callable[[int, int], None] | None = None,
    most_tokens: int = MOST_TOKENS,
) -> Measurements:
    """Those in `path`, or new ones of the unquantized model in `source`, which are written there.

    sequences: the first of them that have answers are measured on, at most `most_tokens`. UsageError if
    the file holds measurements of something else, or no sequence has an answer.
    """
    chosen = probe_sequences(sequences, most_tokens)
    if not chosen:
        raise UsageError(
            f"0 of {len(sequences)} samples have an answer, at least 1 is needed",
            "what bits are worth is measured where the model answers",
            "give samples with questions and answers, or leave the generated ones in",
        )
    identity = {
        "source": source_identity(source),
        "calibration": calibration_identity(chosen),
        "version": version_identity(),
    }
    if path.exists():
        return read_measurements(path, identity)
    config = read_config(source)
    if config.quantization is not None:
        raise UsageError(
            f"{source} is quantized already",
            "what it lost cannot be measured on it",
            "start from the bfloat16 checkpoint",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_checkpoint(source, config) as checkpoint,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch,
        torch.inference_mode(),
    ):
        measured = Probe(checkpoint, config, chosen, Path(scratch), on_layer).run(identity)
    write_measurements(path, measured)
    return measured
