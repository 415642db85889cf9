"""Lets measurements choose the formats of `ernie-local quantize`: within a size, on a GPU, or on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ernie_cli.quantize_options import QuantizeOptions
from ernie_local.sizes import MIB, format_bytes, parse_bytes

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_local.config import ModelConfig, QuantizationConfig
    from ernie_quant.job import Job
    from ernie_quant.measurements import Measurements
    from ernie_quant.probe import AnsweredSequence

_MIXED_BITS = 2.5  # per weight of the routed experts, where no size is asked for
# Besides the weights on a GPU: 8192 tokens of cache, and workspace.
_CACHED_TOKENS = 8192
_WORKSPACE_BYTES = 512 * MIB
_HEADER_BYTES = MIB  # names and places of all tensors, at the beginning of the files


def mixed_job(
    job: Job, options: QuantizeOptions, sequences: Sequence[AnsweredSequence], console: Console
) -> Job:
    """The job with formats by measurement, and the file that holds the measurements; notes say which."""
    from ernie_cli.progress import UnitProgress
    from ernie_local.config import read_config
    from ernie_quant.mixed_tables import allocation_lines
    from ernie_quant.probe import measurements_in

    config = read_config(job.source)
    path = options.statistics or job.out.with_name(job.out.name + ".statistics.json")
    console.note(
        f"measurements are read from {path}" if path.exists() else f"measuring, measurements go to {path}"
    )
    with UnitProgress(is_shown=not options.as_json) as progress:
        measured = measurements_in(path, job.source, sequences, progress.show_layer)
    tables = _choose(job, options, config, measured, console)
    for line in allocation_lines(tables, measured):
        console.note(line)
    return replace(job, tables=tables, statistics=path)


def _choose(
    job: Job, options: QuantizeOptions, config: ModelConfig, measured: Measurements, console: Console
) -> QuantizationConfig:
    from ernie_local.checkpoint.reader import open_checkpoint
    from ernie_quant import mixed_tables

    if options.target_size is not None:
        with open_checkpoint(job.source, config) as checkpoint:
            kept_bytes = mixed_tables.unquantized_bytes(checkpoint, config) + _HEADER_BYTES
        size = parse_bytes(options.target_size, "target_size")
        return mixed_tables.tables_of_size(config, measured, size, kept_bytes, options.dense)
    if options.fit is not None:
        text = config.text
        cache = 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * _CACHED_TOKENS
        size = parse_bytes(options.fit, "fit")
        console.note(
            f"besides the weights: {format_bytes(cache)} for {_CACHED_TOKENS} cached tokens, "
            f"{format_bytes(_WORKSPACE_BYTES)} of workspace"
        )
        return mixed_tables.tables_for_gpu(config, measured, size, cache + _WORKSPACE_BYTES, options.dense)
    return mixed_tables.tables_of_bits(config, measured, _MIXED_BITS, options.dense)
