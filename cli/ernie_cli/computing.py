"""Sets up what every command that computes has in common: ERNIE_LOCAL_ISA and the number of threads.

Without them nothing is imported, and never for `--help`.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from ernie_cli.console import ISA_VARIABLE, forced_instruction_set


class ComputingCommand(TyperCommand):
    """Chooses the instruction set once its options have been read; `--help` ends before that."""

    def invoke(self, ctx: Any) -> Any:
        """Choose the instruction set that was asked for, then run the command."""
        use_forced_instruction_set()
        return super().invoke(ctx)


def use_threads(threads: int | None) -> None:
    """Compute with this many CPU threads; None leaves the number to torch, and imports nothing."""
    if threads is not None:
        from ernie_local import loading

        loading.use_threads(threads)


def use_forced_instruction_set() -> None:
    """Let the CPU kernels of this process use what ERNIE_LOCAL_ISA names.

    Raises UsageError for a name that means nothing, DoesNotFit for what cannot run here.
    """
    name = forced_instruction_set()
    if name is not None:
        from ernie_local.kernels.instruction_sets import choose_instruction_set

        choose_instruction_set(name, ISA_VARIABLE)
