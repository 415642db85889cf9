"""The command `ernie-local doctor`: its options, and findings as lines.

What is checked belongs to ernie_local.doctor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ernie_cli.console import Console
from ernie_cli.options import CommonOptions, file_option, model_argument
from ernie_cli.settings import ISA_VARIABLE, forced_instruction_set, profile_path
from ernie_local.errors import DoesNotFit

if TYPE_CHECKING:
    from ernie_cli.doctor_result import DoctorResult
    from ernie_local.doctor import Diagnosis

_SLOW_EXIT_CODE = 1


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """What was said on the command line."""

    model: str | None = model_argument(
        default=None,
        show_default=False,
        help="Also check the files and the disk of this model: a directory, or nano.",
    )
    bundle: Path | None = file_option(
        help="Write the findings to FILE, a zip to send to others. It holds no paths, no names of people or "
        "machines, and nothing of the environment."
    )


def doctor(options: DoctorOptions, result: DoctorResult) -> None:
    """Check what runs on this machine, and say what to change.

    One line for each check: ok, slow (it works, but could be faster) or fails; then how to fix it. Exit code
    0 if all is ok, 1 if something is slow, 3 if a check fails.
    """
    import tempfile

    from ernie_cli import doctor_bundle
    from ernie_local.doctor import Subject, examine

    console = Console(shows_result=not options.as_json)
    if options.bundle is not None:
        doctor_bundle.check_path(options.bundle)
    is_forced = forced_instruction_set() is not None
    subject = Subject(options.model, Path(tempfile.gettempdir()), profile_path(), ISA_VARIABLE, is_forced)
    findings: list[Diagnosis] = []
    for finding in examine(subject):
        findings.append(finding)
        lines = [f"{finding.name:<10}  {finding.verdict:<5}  {finding.text}"]
        if finding.fix is not None:
            lines.append(f"{'':<10}  {'fix':<5}  {finding.fix}")
        for line in lines if options.as_json else ():
            console.say(line)
        console.show(lines)
        result.update(findings)
    if options.bundle is not None:
        doctor_bundle.write_bundle(options.bundle, result, subject)
        console.note(f"written to {options.bundle}")
    failing = [finding for finding in findings if finding.verdict == "fails"]
    if failing:
        raise DoesNotFit(
            f"ernie-local cannot run here: {len(failing)} of {len(findings)} checks failed "
            f"({', '.join(finding.name for finding in failing)})",
            failing[0].text,
            failing[0].fix or "ernie-local doctor",
        )
    if result.verdict == "slow":
        raise typer.Exit(_SLOW_EXIT_CODE)
