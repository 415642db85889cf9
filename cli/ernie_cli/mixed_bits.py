"""The options that let measurements choose formats: what belongs together, and the tables that come of it.

Knows no model before `mixed_job` is called. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_local.errors import UsageError
from ernie_local.sizes import MIB, format_bytes, parse_bytes

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_quant.job import Job
    from ernie_quant.probe import AnsweredSequence

_MIXED_BITS = 2.5  # a weight of the routed experts, where nothing else is asked for
# Beside the weights on a GPU: 8192 tokens of cache, and room to compute in.
_CACHED_TOKENS = 8192
_WORKSPACE_BYTES = 512 * MIB
_HEADER_BYTES = MIB  # names and places of all tensors, at the beginning of the files


@dataclass(frozen=True, slots=True)
class SizeChoice:
    """--bits, --dense, --target-size, --fit, --statistics and --dual as they were given."""

    bits: str
    dense: str
    target_size: str | None
    fit: str | None
    statistics: Path | None
    dual: bool

    @property
    def is_mixed(self) -> bool:
        """Whether formats come from measurements."""
        return self.bits == "mixed" or self.target_size is not None or self.fit is not None


def check_sizes(choice: SizeChoice, method: str) -> None:
    """UsageError for options that do not go together; costs nothing."""
    if choice.target_size is not None and choice.fit is not None:
        raise UsageError(
            f"--target-size {choice.target_size} and --fit {choice.fit}",
            "one is the size of the checkpoint, the other the memory of a GPU: only one can lead",
            "give one of them",
        )
    if choice.is_mixed and method != "gptq":
        raise UsageError(
            f"mixed bits with --method {method}",
            "what bits are worth is measured on calibration samples, which only gptq has",
            "use --method gptq, or --bits 4 or 2",
        )
    if choice.dual and choice.is_mixed:
        raise UsageError(
            "--dual with mixed bits",
            "they give each expert one page of what it is worth, within a size that counts no second pages, "
            "and what is worth little is small already",
            "use --bits 4 with --dual, or leave --dual out",
        )
    for option, given in (
        ("--dense auto", choice.dense == "auto"),
        ("--statistics", bool(choice.statistics)),
    ):
        if given and not choice.is_mixed:
            raise UsageError(
                f"{option} with --bits {choice.bits}",
                "it says how bits are given out, and there is nothing to give out",
                "add --bits mixed, --target-size or --fit, or leave it out",
            )
    for name, text in (("--target-size", choice.target_size), ("--fit", choice.fit)):
        if text is not None:
            parse_bytes(text, name)


def mixed_job(
    job: Job,
    choice: SizeChoice,
    sequences: Sequence[AnsweredSequence],
    console: Console,
    *,
    shows_progress: bool,
) -> Job:
    """The job with formats by measurement, told in a few lines, and the file that holds the measurements."""
    from ernie_cli.progress import UnitProgress
    from ernie_local.checkpoint.reader import open_checkpoint
    from ernie_local.config import read_config
    from ernie_quant import mixed_tables
    from ernie_quant.probe import measurements_in

    config = read_config(job.source)
    path = choice.statistics or job.out.with_name(job.out.name + ".statistics.json")
    if path.exists():
        console.note(f"what bits are worth is known from {path}")
    else:
        console.note(f"measuring what bits are worth, kept in {path}")
    with UnitProgress(shows_progress) as progress:
        measured = measurements_in(
            path, job.source, sequences, lambda done, layers: progress.show(f"layer {done - 1}", done, layers)
        )
    if choice.target_size is not None:
        with open_checkpoint(job.source, config) as checkpoint:
            kept_bytes = mixed_tables.unquantized_bytes(checkpoint, config) + _HEADER_BYTES
        size = parse_bytes(choice.target_size, "--target-size")
        tables = mixed_tables.tables_of_size(config, measured, size, kept_bytes, choice.dense)
    elif choice.fit is not None:
        text = config.text
        cache = 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * _CACHED_TOKENS
        size = parse_bytes(choice.fit, "--fit")
        console.note(
            f"beside weights: {format_bytes(cache)} for {_CACHED_TOKENS} cached tokens, "
            f"{format_bytes(_WORKSPACE_BYTES)} to compute in"
        )
        tables = mixed_tables.tables_for_gpu(config, measured, size, cache + _WORKSPACE_BYTES, choice.dense)
    else:
        tables = mixed_tables.tables_of_bits(config, measured, _MIXED_BITS, choice.dense)
    for line in mixed_tables.allocation_lines(tables, measured):
        console.note(line)
    return replace(job, tables=tables, statistics=path)
