"""The command `ernie-local inspect`: what a checkpoint is made of, as a table.

Reads config.json and headers only. Imports typer and nothing heavy, not even when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_cli.invocation import Invocation

if TYPE_CHECKING:
    from ernie_local.checkpoint.parts import ModelPart

_COLUMNS = "{:<18}  {:>14}  {:>6}  {:>11}  {:>6}  {}"


def inspect(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A directory, hf:org/name[@revision], or nano.")] = "nano",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/inspect-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Show a model's parts: weights, bits a weight, bytes and formats. Reads headers only."""
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import inspect_json
    from ernie_cli.console import Console
    from ernie_local.checkpoint.files import read_stored_tensors
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.checkpoint.index import account
    from ernie_local.checkpoint.parts import model_parts, stored_tensors
    from ernie_local.config import read_config

    if as_json:
        invocation.json_object = inspect_json.empty_object()
    directory = resolve_model(model)
    config = read_config(directory)
    accounts = account(directory, read_stored_tensors(directory), config)
    parts = model_parts(stored_tensors(accounts, config), config)
    tables = config.quantization
    origin = (
        {} if tables is None else {"source": dict(tables.source), "calibration": dict(tables.calibration)}
    )
    if invocation.json_object is not None:
        invocation.json_object |= {
            "directory": str(directory),
            "layout": accounts.layout,
            "ignored": list(accounts.ignored),
            **origin,
            **inspect_json.part_fields(parts),
        }
        return
    console = Console()
    for line in lines(parts):
        console.answer(line + "\n")
    for title, texts in origin.items():
        for key, value in texts.items():
            console.answer(f"{title} {key}: {value}\n")
    for name in accounts.ignored:
        console.answer(f"no part of the model: {name}\n")


def lines(parts: Sequence[ModelPart]) -> Iterator[str]:
    """The table: a line a part, their sum, and what the routed experts alone come to."""
    from ernie_local.checkpoint.parts import routed_experts, sum_of_parts
    from ernie_local.sizes import format_bytes

    whole, routed = sum_of_parts("all", parts), routed_experts(parts)
    yield _COLUMNS.format("part", "weights", "bits", "size", "share", "formats").rstrip()
    for part in [*parts, whole, *([] if routed is None else [routed])]:
        yield _COLUMNS.format(
            part.name,
            f"{part.weights:,}",
            f"{part.bits_per_weight:.2f}",
            format_bytes(part.num_bytes),
            f"{part.num_bytes / whole.num_bytes:.1%}",
            "" if part is whole else ", ".join(_formats(part)),
        ).rstrip()


def _formats(part: ModelPart) -> list[str]:
    """Of experts the number of pages, of everything else the share of the weights."""
    return [f"{name} x {count}" for name, count in part.pages.items()] or [
        name if count == part.weights else f"{name} {count / part.weights:.1%}"
        for name, count in part.formats.most_common()
    ]
