"""The command `ernie-local`: finds the subcommand, and turns every end of it into an exit code.

Owns the options before the subcommand, the outermost exception handler and the printing of the JSON object.
Imports typer and the declarations of the commands only: `--help` must not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

import ernie_local
from ernie_cli import (
    bench,
    bench_json,
    calibrate,
    calibrate_json,
    chat,
    chat_json,
    doctor,
    doctor_json,
    eval_json,
    inspect,
    inspect_json,
    quantize,
    quantize_json,
    verify,
    verify_json,
    vram,
    vram_json,
)
from ernie_cli.computing import ComputingCommand
from ernie_cli.console import Console, forgive_encodings, silence_stdout
from ernie_cli.eval import evaluate
from ernie_cli.invocation import Invocation

if TYPE_CHECKING:
    from ernie_cli.failures import Failure

INTERRUPTED = 130

app = typer.Typer(
    # Plain help: rich costs a tenth of a second and draws boxes that no pager or grep likes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=ComputingCommand)(chat.chat)
app.command(cls=ComputingCommand)(quantize.quantize)
app.command(cls=ComputingCommand)(calibrate.calibrate)
app.command("eval", cls=ComputingCommand)(evaluate)
app.command(cls=ComputingCommand)(bench.bench)
app.command(cls=ComputingCommand)(inspect.inspect)
app.command()(vram.vram)
app.command(cls=ComputingCommand)(verify.verify)
app.command(cls=ComputingCommand)(doctor.doctor)

# Command to what `--json` prints of a run of it that did not begin.
EMPTY_OBJECTS: Mapping[str, Callable[[], dict[str, object]]] = {
    "chat": chat_json.empty_object,
    "quantize": quantize_json.empty_object,
    "calibrate": calibrate_json.empty_object,
    "eval": eval_json.empty_object,
    "bench": bench_json.empty_object,
    "inspect": inspect_json.empty_object,
    "vram": vram_json.empty_object,
    "verify": verify_json.empty_object,
    "doctor": doctor_json.empty_object,
}


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"ernie-local {ernie_local.__version__}")
        raise typer.Exit(0)


@app.callback(invoke_without_command=True)
def ernie_local_command(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Run ERNIE-4.5-VL on this machine and ask it about images and text.

    Exit codes: 0 ok, 1 failure, 2 usage, 3 does not fit or cannot run here, 4 model missing or corrupt,
    5 input unreadable, 6 out of memory, 7 stopped with no answer,
    75 stopped safely and resumable, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` (without the program's name) and return its exit code.

    BrokenPipeError goes through: there is nobody left to tell.
    """
    invocation = Invocation.from_arguments(arguments)
    exit_code = 0
    error: BaseException | None = None
    try:
        # typer drops what a command returns: the code comes from typer.Exit or from an exception.
        returned = app(list(arguments), standalone_mode=False, prog_name="ernie-local", obj=invocation)
        exit_code = returned if isinstance(returned, int) else 0
        if exit_code == INTERRUPTED:
            error = KeyboardInterrupt()  # typer has made this code of Ctrl-C, without a word
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001  the outermost frame: all become exit codes
        error = caught
    failure = None if error is None else _tell(error, invocation)
    _print_json(invocation, failure)
    return exit_code if failure is None else failure.exit_code


def _tell(error: BaseException, invocation: Invocation) -> Failure:
    import traceback

    from ernie_cli.failures import describe

    if invocation.debug:
        traceback.print_exception(error)
    failure = describe(error)
    Console().error(failure.text())
    return failure


def _print_json(invocation: Invocation, failure: Failure | None) -> None:
    """Print the object of this run: the command's own, or an empty one where the command did not begin."""
    fields = invocation.json_object
    if fields is None and invocation.wants_json and failure is not None:
        empty_object = EMPTY_OBJECTS.get(invocation.command or "")
        fields = None if empty_object is None else empty_object()
    if fields is None:
        return
    import json

    from ernie_cli.json_object import finished

    value = finished(fields, failure)
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The console entry point."""
    forgive_encodings()
    try:
        exit_code = run(sys.argv[1:])
    except BrokenPipeError:  # whoever read stdout has seen enough
        silence_stdout()
        exit_code = 1
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
