"""The command `ernie-local doctor`: its options, and findings as lines.

What is checked belongs to ernie_local.doctor. Imports typer and nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ernie_cli.invocation import Invocation

if TYPE_CHECKING:
    from ernie_local.doctor import Diagnosis

_SLOW_EXIT_CODE = 1


def doctor(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            show_default=False, help="Check this model's files and disk too: a directory, or nano."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what was found to FILE, a zip to show to others: without paths, names of people and "
            "machines, or the environment.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object (docs/doctor-json.md); the lines go to stderr."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Check what runs on this machine, and say what to change.

    One line a check: ok, slow (it runs, but could run faster) or fails; then how to fix it. Exit code 0 where
    all is ok, 1 where something is slow, 3 where a check fails.
    """
    del debug  # Acted on by main, which is where errors arrive.
    _run(model, bundle, as_json, context.ensure_object(Invocation))


def _run(model: str | None, bundle: Path | None, as_json: bool, invocation: Invocation) -> None:
    import tempfile

    from ernie_cli import doctor_bundle, doctor_json
    from ernie_cli.console import ISA_VARIABLE, Console, forced_instruction_set, profile_path
    from ernie_local.doctor import Subject, examine, worst_verdict

    console = Console()
    if as_json:
        invocation.json_object = doctor_json.empty_object()
    if bundle is not None:
        doctor_bundle.check_path(bundle)
    subject = Subject(model, Path(tempfile.gettempdir()), profile_path())
    is_forced = forced_instruction_set() is not None
    findings: list[Diagnosis] = []
    for finding in examine(ISA_VARIABLE, isa_is_forced=is_forced, subject=subject):
        findings.append(finding)
        for line in lines(finding):
            if as_json:
                console.say(line)
            else:
                console.answer(line + "\n")
        if invocation.json_object is not None:
            invocation.json_object |= doctor_json.finding_fields(findings)
    if bundle is not None:
        doctor_bundle.write_bundle(bundle, findings, subject)
        console.note(f"written to {bundle}")
    raise_for_failing(findings)
    if worst_verdict(findings) == "slow":
        raise typer.Exit(_SLOW_EXIT_CODE)


def lines(finding: Diagnosis) -> Iterator[str]:
    """The finding for people: what was found, then how to fix it."""
    yield f"{finding.name:<10}  {finding.verdict:<5}  {finding.text}"
    if finding.fix is not None:
        yield f"{'':<10}  {'fix':<5}  {finding.fix}"


def raise_for_failing(findings: Sequence[Diagnosis]) -> None:
    """Raise DoesNotFit where a check fails, with the first one's reason and fix."""
    from ernie_local.errors import DoesNotFit

    failing = [finding for finding in findings if finding.verdict == "fails"]
    if failing:
        raise DoesNotFit(
            f"ernie-local cannot run here: {len(failing)} of {len(findings)} checks failed "
            f"({', '.join(finding.name for finding in failing)})",
            failing[0].text,
            failing[0].fix or "ernie-local doctor",
        )
