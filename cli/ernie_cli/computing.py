"""What every command that computes has in common: ERNIE_LOCAL_ISA is obeyed before it begins.

Knows nothing of what is computed. Without the variable nothing is imported, and never for `--help`.
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


def use_forced_instruction_set() -> None:
    """Let the CPU kernels of this process use what ERNIE_LOCAL_ISA names.

    Raises UsageError for a name that means nothing, DoesNotFit for what cannot run here.
    """
    name = forced_instruction_set()
    if name is not None:
        from ernie_local.kernels.instruction_sets import choose_instruction_set

        choose_instruction_set(name, ISA_VARIABLE)
