"""The command `ernie-local verify`: whether a checkpoint is whole. Imports typer and nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

from ernie_cli.invocation import Invocation


def verify(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A directory, hf:org/name[@revision], or nano.")] = "nano",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with all findings (docs/verify-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Read a whole checkpoint once: hashes, tensors, pages, numbers, tokenizer and processor.

    Exit code 4 and the first fault where something is wrong. Needs little memory, whatever the model's size.
    """
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import verify_json
    from ernie_cli.console import Console
    from ernie_cli.progress import UnitProgress
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.sizes import format_bytes
    from ernie_local.verify import verify as verify_directory

    if as_json:
        invocation.json_object = verify_json.empty_object()
    console = Console(quiet=as_json)
    directory = resolve_model(model)
    with UnitProgress(is_shown=not as_json) as progress:
        result = verify_directory(directory, progress.show)
    if invocation.json_object is not None:
        invocation.json_object |= {"directory": str(directory), **verify_json.result_fields(result)}
    for note in result.notes:
        console.note(note)
    if result.findings:
        if len(result.findings) > 1:
            console.note(f"{len(result.findings)} findings, the first is told here; --json lists all")
        raise result.findings[0].error
    if not as_json:
        console.answer(
            f"{directory} is whole: {result.num_tensors:,} tensors, {result.num_pages:,} pages, "
            f"{format_bytes(result.num_bytes)} in {len(result.hashes)} files, "
            f"{result.num_compared} of them with the hash of when they were written\n"
        )
