"""Finds the command that `ernie-local` was asked for, and turns every end of it into an exit code.

The outermost exception handler and the printing of the JSON object are here. Imports typer and the options
of the commands only: `--help` must not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ernie_local
from ernie_cli import calibrate, doctor, inspect, quantize, verify
from ernie_cli import eval as eval_command
from ernie_cli.bench import command as bench
from ernie_cli.chat import command as chat
from ernie_cli.chat.options import ChatOptions
from ernie_cli.console import Console, forgive_encodings, silence_stdout
from ernie_cli.options import command_from
from ernie_cli.quantize_options import QuantizeOptions
from ernie_cli.settings import use_forced_instruction_set
from ernie_cli.vram import command as vram
from ernie_cli.vram.options import VramOptions

if TYPE_CHECKING:
    from ernie_cli.failures import Failure

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table: what runs, with which options, and the class of its result as module:name.

    The result's module is imported when the command runs, `run` gets an empty one and fills it. A command
    that computes obeys ERNIE_LOCAL_ISA.
    """

    run: Callable[[Any, Any], None]
    options: type[Any]
    result: str
    computes: bool = True

    def new_result(self) -> Any:
        """The result of a run that knows nothing yet."""
        module, _, name = self.result.partition(":")
        return getattr(importlib.import_module(module), name)()


COMMANDS: Mapping[str, Command] = {
    "chat": Command(chat.chat, ChatOptions, "ernie_cli.chat.result:ChatResult"),
    "quantize": Command(quantize.quantize, QuantizeOptions, "ernie_cli.quantize:QuantizeResult"),
    "calibrate": Command(
        calibrate.calibrate, calibrate.CalibrateOptions, "ernie_cli.calibrate:CalibrateResult"
    ),
    "eval": Command(
        eval_command.compare_checkpoints, eval_command.EvalOptions, "ernie_cli.eval_result:EvalResult"
    ),
    "bench": Command(bench.bench, bench.BenchOptions, "ernie_cli.bench.result:BenchResult"),
    "inspect": Command(inspect.inspect, inspect.InspectOptions, "ernie_cli.inspect:InspectResult"),
    "vram": Command(vram.vram, VramOptions, "ernie_cli.vram.result:VramResult", computes=False),
    "verify": Command(verify.verify_checkpoint, verify.VerifyOptions, "ernie_cli.verify:VerifyResult"),
    "doctor": Command(doctor.doctor, doctor.DoctorOptions, "ernie_cli.doctor_result:DoctorResult"),
}


@dataclass(slots=True)
class Invocation:
    """One run of the command line.

    `wants_json` and `debug` are looked up in the raw arguments: a wrong option must be reported in the right
    form before the options are parsed. `result` is that of the command, None until it begins.
    """

    wants_json: bool = False
    debug: bool = False
    command: str | None = None
    result: Any = None

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Invocation:
        """The flags and the command name in `arguments` (without the program's name)."""
        words = list(arguments)
        if "--" in words:
            words = words[: words.index("--")]
        command = next((word for word in words if not word.startswith("-")), None)
        return cls(wants_json="--json" in words, debug="--debug" in words, command=command)


app = typer.Typer(
    # Plain help: rich costs a tenth of a second and draws boxes that no pager or grep likes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register(name: str, command: Command) -> None:
    def run(context: typer.Context, options: Any) -> None:
        if command.computes:
            use_forced_instruction_set()
        result = command.new_result()
        context.ensure_object(Invocation).result = result
        command.run(options, result)

    app.command(name)(command_from(command.options, run, command.run.__doc__))


for _name, _command in COMMANDS.items():
    _register(_name, _command)


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

    BrokenPipeError is not caught: the reader is gone.
    """
    invocation = Invocation.from_arguments(arguments)
    exit_code = 0
    error: BaseException | None = None
    try:
        # typer drops what a command returns: the code comes from typer.Exit or from an exception.
        returned = app(list(arguments), standalone_mode=False, prog_name="ernie-local", obj=invocation)
        exit_code = returned if isinstance(returned, int) else 0
        if exit_code == INTERRUPTED:
            error = KeyboardInterrupt()  # typer has turned Ctrl-C into this code and says nothing
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as caught:  # noqa: BLE001  the outermost frame: all become exit codes
        error = caught
    failure = None if error is None else _tell(error, invocation)
    _print_json(invocation, failure)
    return exit_code if failure is None else failure.exit_code


def _tell(error: BaseException, invocation: Invocation) -> Failure:
    import traceback

    from ernie_cli.failures import failure_of

    if invocation.debug:
        traceback.print_exception(error)
    failure = failure_of(error)
    Console().error(failure.text())
    return failure


def _print_json(invocation: Invocation, failure: Failure | None) -> None:
    """Print the object of this run, if one was asked for; an empty one where the command did not begin."""
    command = COMMANDS.get(invocation.command or "")
    if not invocation.wants_json or command is None:
        return
    result = invocation.result
    if result is None and failure is not None:
        result = command.new_result()
    if result is None:  # --help
        return
    import json

    from ernie_cli.json_object import finished

    value = finished(invocation.command or "", result, failure)
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The console entry point."""
    forgive_encodings()
    try:
        exit_code = run(sys.argv[1:])
    except BrokenPipeError:  # the reader of stdout is gone
        silence_stdout()
        exit_code = 1
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
