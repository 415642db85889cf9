"""Runs programs as tools: a line of JSON on their stdin, JSON or the path of an image on their stdout.

No shell is involved. A program has a time and a size of output, and ends with all that it has started.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.files import read_plain
from ernie_local.session.image_tools import SEARCH_DESCRIPTION, SEARCH_NAME, SEARCH_PARAMETERS
from ernie_local.session.tools import Arguments, ChatTool, ToolContext, ToolError
from ernie_local.strict_json import show

PROGRAM_SECONDS = 60.0
_MOST_OUTPUT_BYTES = 1 << 20
_MOST_FILE_BYTES = 4 << 20
_SHOWN_STDERR_BYTES = 500  # the end of it, which says what went wrong
_PIECE_BYTES = 1 << 16
_LOOK_SECONDS = 0.1  # between two looks whether it has ended, or was stopped

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class ProgramEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool in a file of --tools. parameters: a JSON schema. command: split as a shell does, or a list."""

    name: str
    command: str | list[str]
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object"})
    seconds: _Seconds = PROGRAM_SECONDS


@dataclass(frozen=True, slots=True)
class ToolProgram:
    """A tool, and the command that it runs."""

    tool: ChatTool
    command: tuple[str, ...]


def read_tool_file(path: Path) -> list[ToolProgram]:
    """The programs of a JSON file: a list of objects with the fields of ProgramEntry.

    InputUnreadable where the file is missing, no such list, or has other keys; UsageError as of
    `program_tool`.
    """
    try:
        entries = msgspec.json.decode(read_plain(path, _MOST_FILE_BYTES), type=list[ProgramEntry])
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputUnreadable(
            f"the tools in {path} cannot be read",
            why,
            'a list such as [{"name": "weather", "description": "...", "parameters": {"type": "object"}, '
            '"command": "./weather.py"}]',
        ) from error
    return [_of_entry(entry, str(path)) for entry in entries]


def parse_tool_option(text: str) -> ToolProgram:
    """The program of NAME=COMMAND, called with any arguments, or as published under a published name."""
    name, sign, command = text.partition("=")
    if not sign:
        raise UsageError(f"{text!r} names no tool", "a tool is a name and a command", "weather=./weather.py")
    entry = ProgramEntry(name=name.strip(), command=command)
    if entry.name == SEARCH_NAME:
        entry.description, entry.parameters = SEARCH_DESCRIPTION, SEARCH_PARAMETERS
    return _of_entry(entry, text)


def _of_entry(entry: ProgramEntry, where: str) -> ToolProgram:
    """UsageError for a command that is not there, and for a schema that is none."""
    try:
        command = shlex.split(entry.command) if isinstance(entry.command, str) else entry.command
    except ValueError as error:
        raise UsageError(
            f"the command of {entry.name!r} in {where!r} cannot be split", str(error), "close the quotes"
        ) from error
    if not command or shutil.which(command[0]) is None:
        raise UsageError(
            f"the command of the tool {entry.name!r} is not there: {show(command[0] if command else '')}",
            "it is neither a program that can be found nor the path of one that may be run",
            "check the spelling, give a path such as ./weather.py, and chmod +x it",
        )
    check = _checker(entry.name, entry.parameters)

    def run(arguments: Arguments, context: ToolContext) -> object:
        check(arguments)
        job = {
            "name": entry.name,
            "arguments": arguments,
            "images": [image.path for image in context.images],
        }
        return _meaning(run_program(command, json.dumps(job).encode() + b"\n", entry.seconds, context))

    tool = ChatTool(entry.name, entry.description, entry.parameters, run)
    return ToolProgram(tool, tuple(command))


def _checker(name: str, parameters: Mapping[str, Any]) -> Any:
    """A function that raises ToolError for arguments that do not fit the schema."""
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(parameters)
    except jsonschema.SchemaError as error:
        raise UsageError(
            f"the parameters of the tool {name!r} are no JSON schema",
            f"{error.json_path}: {error.message}",
            '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
        ) from error
    for reference in _references(parameters):
        if not reference.startswith("#"):
            raise UsageError(
                f"the parameters of the tool {name!r} cannot be used: a $ref leads to {show(reference)}",
                "nothing is fetched, and the model could not follow it",
                'put it below "$defs" in the schema, and write "#/$defs/..."',
            )
    validator = jsonschema.Draft202012Validator(parameters)

    def check(arguments: Arguments) -> None:
        found = jsonschema.exceptions.best_match(validator.iter_errors(dict(arguments)))
        if found is not None:
            raise ToolError(f"{found.json_path}: {found.message}")

    return check


def _references(schema: object) -> Iterator[str]:
    """All that `$ref` says in a schema."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting.extend(part.values())
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
        elif isinstance(part, list):
            waiting.extend(part)


def run_program(command: Sequence[str], given: bytes, seconds: float, context: ToolContext) -> bytes:
    """What a program writes; ToolError where it fails, takes too long, writes too much, or is stopped.

    Its whole process group is killed at the end, whatever the end is.
    """
    output, errors = bytearray(), bytearray()
    # From a file, so that a program that does not read it keeps nobody waiting.
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise ToolError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    with process:
        try:
            _read_pipes(process, output, errors, time.monotonic() + seconds, context)
        except TimeoutError as error:
            raise ToolError(f"{command[0]} took more than {seconds:g} seconds and was ended") from error
        finally:
            # Before it is waited for: until then, no other process can have its number.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        end = errors[-_SHOWN_STDERR_BYTES:].decode(errors="replace").strip()
        raise ToolError(f"{command[0]} ended with code {process.returncode}: {end or 'it says nothing'}")
    return bytes(output)


def _read_pipes(
    process: subprocess.Popen[bytes],
    output: bytearray,
    errors: bytearray,
    deadline: float,
    context: ToolContext,
) -> None:
    """Read both pipes until the program has ended; TimeoutError at the deadline."""
    assert process.stdout is not None, "it is a pipe"
    assert process.stderr is not None, "it is a pipe"
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ, output)
        waiting.register(process.stderr, selectors.EVENT_READ, errors)
        has_ended = False
        while True:
            ready = waiting.select(0 if has_ended else _LOOK_SECONDS)
            for key, _ in ready:
                piece = os.read(key.fd, _PIECE_BYTES)
                if not piece:
                    waiting.unregister(key.fileobj)
                key.data.extend(piece)
                del errors[:-_SHOWN_STDERR_BYTES]
            if len(output) > _MOST_OUTPUT_BYTES:
                raise ToolError(f"it wrote more than {_MOST_OUTPUT_BYTES} bytes and was ended")
            # What it has started may hold the pipes open for longer.
            if has_ended and not ready:
                return
            if time.monotonic() > deadline:
                raise TimeoutError
            if context.should_stop():
                raise ToolError("the answer was stopped")
            has_ended = _has_ended(process.pid)


def _has_ended(pid: int) -> bool:
    """Whether this child has ended, which is not waited for: its number stays taken."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _meaning(output: bytes) -> object:
    """The JSON value that a program wrote, or the path of an image."""
    text = output.decode(errors="replace").strip()
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    if "\n" not in text and _is_file(text):
        return Path(text)
    raise ToolError(f"what it wrote is neither JSON nor the path of an image: {show(text)}")


def _is_file(text: str) -> bool:
    """Whether a file, or a page of one, is meant that is there."""
    try:
        return any(Path(path).is_file() for path in (text, text.rpartition(":")[0]))
    except (OSError, ValueError):  # too long, or with a zero
        return False
