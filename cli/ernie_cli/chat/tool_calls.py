"""Makes the tools that the options name, asks before programs are run, and shows what was called."""

from __future__ import annotations

import json
import select
import shlex
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ernie_cli.chat.tool_options import ToolOptions
from ernie_cli.console import Console
from ernie_local.errors import ErnieLocalError
from ernie_local.escapes import printable_line
from ernie_local.session import Answer, ChatTool, ToolContext, ToolError, ToolProgram, ToolStep
from ernie_local.session.image_tools import zoom_tool
from ernie_local.session.tool_programs import parse_tool_option, read_tool_file
from ernie_local.session.tools import Arguments
from ernie_local.sizes import format_bytes

_SHOWN_CHARACTERS = 200
_LOOK_SECONDS = 0.2  # between two looks whether Ctrl-C was pressed


def make_tools(options: ToolOptions, console: Console) -> list[ChatTool]:
    """What the options name; programs ask on the terminal before each run unless --yes.

    Errors of `parse_tool_option` and `read_tool_file`.
    """
    programs = [parse_tool_option(text) for text in options.tool_commands]
    for path in options.tool_files:
        programs += read_tool_file(path)
    tools = [
        one.tool if options.yes else replace(one.tool, run=partial(_confirmed, one, console))
        for one in programs
    ]
    return [*tools, *([zoom_tool()] if options.zoom else [])]


def _confirmed(program: ToolProgram, console: Console, arguments: Arguments, context: ToolContext) -> object:
    """Run it if the person at the terminal agrees."""
    console.status.hide()
    # All of it: whoever agrees has to know to what.
    called = f"{program.tool.name} {_written(arguments)}"
    console.say(f"the model calls {called}\nrun {printable_line(shlex.join(program.command))}? [y/N]")
    if sys.stdin.isatty():  # what was typed before the question is no answer to it
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
        if context.should_stop():
            raise ToolError("the answer was stopped")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ToolError("the user did not allow this call")
    return program.tool.run(arguments, context)


def show_step(options: ToolOptions, console: Console, step: ToolStep) -> None:
    """Tell what was called and what came of it, and write its images where --steps says so."""
    called = _shown(f"{step.call.name} {_written(step.call.arguments)}")
    if step.is_error:
        console.warn(f"{called}: {_shown(step.result.text)}")
        return
    parts = list(_image_texts(step)) or [_shown(step.result.text)]
    console.note(f"{called} -> {'; '.join(parts)} ({step.seconds:.2f} s)")
    if options.steps is None:
        return
    for number, image in enumerate(step.result.images, start=step.first_image or 1):
        path = options.steps / f"picture-{number}.png"
        try:
            options.steps.mkdir(exist_ok=True)
            image.in_full().image.save(path)
        except OSError as error:
            raise ErnieLocalError(
                f"{path} cannot be written", error.strerror or str(error), "--steps with another directory"
            ) from error
        console.note(f"written: {path}")


def _image_texts(step: ToolStep) -> Iterator[str]:
    for number, image in enumerate(step.result.images, start=step.first_image or 1):
        width, height = image.report.read_size
        seen = "x".join(map(str, image.report.resized_size))
        yield f"picture {number}: {image.name}, {width}x{height} -> {seen}, {image.num_tokens} tokens"


def step_lines(answer: Answer) -> Iterator[str]:
    """The figures of the calls on the way to an answer, a line for each round."""
    for number in sorted({step.round for step in answer.steps}):
        steps = [step for step in answer.steps if step.round == number]
        tokens = sum(image.num_tokens for step in steps for image in step.result.images)
        names = ", ".join(printable_line(step.call.name) for step in steps)
        line = f"round {number}: {names} in {sum(step.seconds for step in steps):.2f} s"
        line += f", {tokens} tokens of images" if tokens else ""
        paging = steps[0].paging
        if paging is not None and tokens:
            vision = paging.banks["vision"]
            pages = vision.prompt_hits + vision.prompt_misses
            line += (
                f"; vision experts: {vision.prompt_misses} of {pages} pages read, "
                f"{format_bytes(vision.bytes_read)}"
            )
        yield line


def _written(arguments: Arguments) -> str:
    return printable_line(json.dumps(arguments, ensure_ascii=False))


def _shown(text: str) -> str:
    text = printable_line(text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
