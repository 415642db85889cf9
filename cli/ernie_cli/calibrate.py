"""The command `ernie-local calibrate`: measures once what bits are worth, for later runs of `quantize`.

Imports typer and nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ernie_cli.invocation import Invocation
from ernie_cli.quantize_options import CalibrationFolder, Family, NumSamples, Seed, Source


def calibrate(
    context: typer.Context,
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, such as statistics.json.")],
    samples: NumSamples = 300,
    seed: Seed = 0,
    family: Family = "all",
    calib: CalibrationFolder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/calibrate-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Measure what bits are worth in each expert and layer, for `quantize --statistics FILE`.

    The model runs once, unquantized, over the first samples, with a copy of all tokens for every layer that
    is rounded on trial. `quantize` does the same by itself where no file is named; its samples must be the
    same.
    """
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import calibrate_json
    from ernie_cli.calibration_samples import SampleChoice, check_choice, draw_sequences
    from ernie_cli.console import Console
    from ernie_cli.progress import UnitProgress
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.errors import UsageError
    from ernie_quant.probe import measurements_in

    if as_json:
        invocation.json_object = calibrate_json.empty_object()
    console = Console(quiet=as_json)
    choice = SampleChoice(samples, seed, calib, family)
    check_choice(choice, "gptq")
    if out.exists():
        raise UsageError(
            f"{out} is there already", "nothing is overwritten", "name a new file, or move it away"
        )
    directory = resolve_model(source)
    sequences = draw_sequences(directory, choice, console)
    with UnitProgress(is_shown=not as_json) as progress:
        measured = measurements_in(
            out, directory, sequences, lambda done, layers: progress.show(f"layer {done - 1}", done, layers)
        )
    if invocation.json_object is not None:
        invocation.json_object |= {"out": str(out), **calibrate_json.measured_fields(measured)}
        return
    for line in calibrate_json.lines(measured):
        console.answer(line + "\n")
