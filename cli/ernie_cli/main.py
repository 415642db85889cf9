"""Finds the command that `ernie-local` was asked for, and turns every end of it into an exit code.

The outermost exception handler and the printing of the JSON object are here. Imports typer and the options
of the commands only: `--help` must not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import ernie_local
from ernie_cli import cache, calibrate, doctor, export, inspect, models, quantize, serve, verify
from ernie_cli import eval as eval_command
from ernie_cli.bench import command as bench
from ernie_cli.chat import command as chat
from ernie_cli.chat.options import ChatOptions
from ernie_cli.console import Console
from ernie_cli.extract import command as extract
from ernie_cli.extract.options import ExtractOptions
from ernie_cli.failures import Failure, failure_of
from ernie_cli.json_object import finished
from ernie_cli.options import command_from
from ernie_cli.quantize_options import QuantizeOptions
from ernie_cli.settings import use_forced_instruction_set
from ernie_cli.streams import abandon_stdout, protect_streams
from ernie_cli.vram import command as vram
from ernie_local.escapes import printable_json
from ernie_local.machine.libraries import torch_failure

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table: what runs, with which options, and the class of its result as module:name.

    The result's module is imported when the command runs, `run` gets an empty one and fills it. A command
    that computes obeys ERNIE_LOCAL_ISA; one that needs PyTorch is refused where that cannot be loaded.
    """

    run: Callable[[Any, Any], None]
    options: type[Any]
    result: str
    computes: bool = True
    needs_torch: bool = True

    def new_result(self) -> Any:
        """The result of a run that knows nothing yet."""
        module, _, name = self.result.partition(":")
        return getattr(importlib.import_module(module), name)()


COMMANDS: Mapping[str, Command] = {
    "chat": Command(chat.chat, ChatOptions, "ernie_cli.chat.result:ChatResult"),
    "extract": Command(extract.extract_fields, ExtractOptions, "ernie_cli.extract.result:ExtractResult"),
    "serve": Command(serve.serve, serve.ServeOptions, "ernie_cli.serve:ServeResult"),
    "quantize": Command(quantize.quantize, QuantizeOptions, "ernie_cli.quantize:QuantizeResult"),
    "calibrate": Command(
        calibrate.calibrate, calibrate.CalibrateOptions, "ernie_cli.calibrate:CalibrateResult"
    ),
    "eval": Command(
        eval_command.compare_checkpoints, eval_command.EvalOptions, "ernie_cli.eval_result:EvalResult"
    ),
    "export": Command(export.export_checkpoint, export.ExportOptions, "ernie_cli.export:ExportResult"),
    "bench": Command(bench.bench, bench.BenchOptions, "ernie_cli.bench.result:BenchResult"),
    "inspect": Command(
        inspect.inspect, inspect.InspectOptions, "ernie_cli.inspect:InspectResult", needs_torch=False
    ),
    "vram": Command(
        vram.vram, vram.VramOptions, "ernie_cli.vram.result:VramResult", computes=False, needs_torch=False
    ),
    "models": Command(
        models.models, models.ModelsOptions, "ernie_cli.models:ModelsResult", needs_torch=False
    ),
    "cache": Command(
        cache.cache, cache.CacheOptions, "ernie_cli.cache:CacheResult", computes=False, needs_torch=False
    ),
    "verify": Command(verify.verify_checkpoint, verify.VerifyOptions, "ernie_cli.verify:VerifyResult"),
    "doctor": Command(
        doctor.doctor, doctor.DoctorOptions, "ernie_cli.doctor_result:DoctorResult", needs_torch=False
    ),
}


@dataclass(slots=True)
class Invocation:
    """One run of the command line.

    The flags are looked up in the raw arguments: a wrong option must be reported in the right form before the
    options are parsed. `result` is that of the command, None until it begins.
    """

    wants_json: bool
    debug: bool
    command: str | None
    result: Any = None

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Invocation:
        """The flags and the command name in `arguments` (without the program's name)."""
        words = list(takewhile(lambda word: word != "--", arguments))
        command = next((word for word in words if not word.startswith("-")), None)
        return cls("--json" in words, "--debug" in words, command)


class _CommandGroup(TyperGroup):
    """Names the nearest command where there is none of that name, or none at all before the options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and len(args[0]) > 1 and args[0].startswith("-") and args[0] not in own | {"--"}:
            from ernie_cli.unknown_command import missing_command

            takes_value = {
                name: {
                    option: not getattr(parameter, "is_flag", True)
                    for parameter in command.params
                    for option in (*parameter.opts, *parameter.secondary_opts)
                }
                for name, command in self.commands.items()
            }
            if not ctx.resilient_parsing:
                raise missing_command(args, takes_value)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if word not in self.commands and not ctx.resilient_parsing:
            from ernie_cli.unknown_command import unknown_command

            raise unknown_command(word, args[1:], self.commands)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_CommandGroup,
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
        failed = torch_failure() if command.needs_torch else None
        if failed is not None:
            raise failed
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
    failure = None
    try:
        # typer drops what a command returns: the code comes from typer.Exit or from an exception.
        exit_code: int = (
            app(list(arguments), standalone_mode=False, prog_name="ernie-local", obj=invocation) or 0
        )
        if exit_code == INTERRUPTED:
            raise KeyboardInterrupt  # typer has turned Ctrl-C into this code and says nothing
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the outermost frame: all become exit codes
        failure = _tell(error, invocation)
        exit_code = failure.exit_code
    try:
        if invocation.wants_json:
            _print_json(invocation, failure)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        # Told once: an answer on a full disk has failed already.
        exit_code = exit_code or _tell(error, invocation).exit_code
    return exit_code


def _tell(error: BaseException, invocation: Invocation) -> Failure:
    console = Console()
    if invocation.debug:
        console.say("".join(traceback.format_exception(error)).rstrip("\n"))
    failure = failure_of(error)
    console.error(failure.text())
    return failure


def _print_json(invocation: Invocation, failure: Failure | None) -> None:
    """Print the object of this run; an empty one where the command did not begin, none after --help."""
    name, result = invocation.command or "", invocation.result
    if result is None and failure is not None and name in COMMANDS:
        result = COMMANDS[name].new_result()
    if result is not None:
        import json

        value = finished(name, result, failure)
        sys.stdout.write(printable_json(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n")


def main() -> None:
    """The console entry point."""
    protect_streams()
    try:
        exit_code = run(sys.argv[1:])
    except BrokenPipeError:  # the reader of stdout is gone
        abandon_stdout()
        exit_code = 1
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
