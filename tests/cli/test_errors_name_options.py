"""Arguments that errors of the library name, as the command line's options."""

from __future__ import annotations

from ernie_cli.failures import failure_of, spell_options
from ernie_local.errors import UsageError, parameter


def test_arguments_become_options() -> None:
    error = UsageError(
        f"{parameter('ram', '6GiB')} with {parameter('context_size', 4096)}",
        f"{parameter('thinking_budget')} is too small",
        parameter("dual", True),
    )
    told = "--ram 6GiB with --ctx-size 4096\n--think-budget is too small\ntry: --dual"
    assert failure_of(error).text() == told
    assert spell_options(f"no {parameter('small_below')}") == "no --small-below"
