"""Declares the options of `ernie-local chat` by which a model calls tools, and checks them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ernie_cli.options import file_option, option
from ernie_local.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ToolOptions:
    """What the model may call on the way to an answer."""

    zoom: bool = option(
        "--zoom",
        default=False,
        help="Let the model look closer: the part of an image that it asks for is cut from the pixels of the "
        "file and shown to it. For models with the Thinking template.",
    )
    tool_commands: tuple[str, ...] = option(
        "--tool",
        default=(),
        metavar="NAME=COMMAND",
        help="A program that the model may call, repeatable: it gets JSON on stdin and writes JSON, or the "
        "path of an image. No shell is involved (docs/tools.md).",
    )
    tool_files: tuple[Path, ...] = file_option(
        "--tools",
        default=(),
        help="A JSON list of such programs with what the model is told of them: name, description, "
        "parameters (a JSON Schema), command, seconds. Repeatable.",
    )
    yes: bool = option("--yes", default=False, help="Run programs that the model calls without asking.")
    max_rounds: int | None = option(
        metavar="N", min=1, max=1000, help="Rounds of calls, after which the model has to answer. Default: 6."
    )
    steps: Path | None = file_option(
        metavar="DIR", help="Write the images that tools show to the model to DIR, as picture-N.png."
    )

    @property
    def has_programs(self) -> bool:
        """Whether the model may run anything on this machine."""
        return bool(self.tool_commands or self.tool_files)

    def check_tools(self, has_form: bool, continues: bool) -> None:
        """UsageError for options that contradict each other, or that nothing can follow.

        has_form: whether the answer is held to a form. continues: a saved chat, which may have tools.
        """
        named = ["--zoom"] * self.zoom + ["--tool"] * bool(self.tool_commands)
        named += ["--tools"] * bool(self.tool_files)
        if named and has_form:
            raise UsageError(
                f"{named[0]} with a form of the answer",
                "an answer that is held to a form begins at once, and calls no tool",
                "remove one of them, or ask for the form in words",
            )
        given = {"--yes": self.yes, "--max-rounds": self.max_rounds, "--steps": self.steps}
        idle = [name for name, value in given.items() if value]
        if idle and not named and not continues:
            raise UsageError(f"{idle[0]} without a tool", "the model has nothing to call", "add --zoom")
        if self.has_programs and not self.yes and not _has_terminal():
            raise UsageError(
                f"{named[-1]} without a terminal",
                "each call of a program has to be confirmed, and there is nobody to ask",
                "--yes runs what the model calls without asking: only for programs that can do no harm",
            )
        if self.steps is not None and self.steps.exists() and not self.steps.is_dir():
            raise UsageError(
                f"--steps {self.steps} is no directory", "it gets a file for each image", "--steps steps"
            )


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
