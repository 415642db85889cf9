"""The command `ernie-local chat`: the order of its steps, and one question from the command line.

Everything that can be wrong is checked before the model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ernie_cli.chat.answering import AskSettings, ask, cut_off_line, stats_line
from ernie_cli.chat.options import ChatOptions
from ernie_cli.console import Console
from ernie_local.errors import Interrupted

if TYPE_CHECKING:
    from ernie_cli.chat.result import ChatResult
    from ernie_local.session import Answer, Chat, ChatImage


def chat(options: ChatOptions, result: ChatResult) -> None:
    """Ask about images and text: once with -p or a pipe, otherwise in a chat.

    The answer goes to stdout, everything else to stderr.
    """
    from ernie_cli import images
    from ernie_cli.chat import interactive, opening
    from ernie_cli.chat.request import check_chat_options, read_request
    from ernie_local import model_files

    result.model = options.model
    check_chat_options(options)
    request = read_request(
        options.prompt, options.images, interactive=options.interactive, as_json=options.as_json
    )
    console = Console(quiet=options.as_json)
    opened = images.open_given_images(request.images, sys.stdin.buffer if sys.stdin is not None else None)
    files = model_files.find_model_files(options.model)
    from ernie_local import session

    measured = session.open_chat_images(opened, files.image_processor)
    session.check_first_question(
        files,
        request.prompt or "",
        measured,
        system=options.system,
        thinking=options.thinking(),
        context_size=options.context_tokens(),
    )
    if request.prompt is None or options.interactive:
        interactive.chat_line_by_line(options, files, console, measured, request.prompt)
        return
    images.show_reports(measured, console)
    result.set_images([image.report for image in measured])
    chat = opening.open_chat(options, files, console)
    with opening.trace_written(options.trace, chat, console):
        _answer_once(chat, options, console, request.prompt, measured, result)


def _answer_once(
    chat: Chat,
    options: ChatOptions,
    console: Console,
    prompt: str,
    images: Sequence[ChatImage],
    result: ChatResult,
) -> None:
    """Answer `prompt`; raises Interrupted or NoAnswer where that is how it ended."""
    settings = AskSettings(
        thinking=options.thinking(),
        think_budget=options.think_budget_count(),
        max_tokens=options.max_tokens_count(),
        hide_thinking=options.hide_thinking,
        stream=not options.no_stream,
        print_answer=not options.as_json,
    )
    try:
        answer = ask(chat, prompt, images, settings, console)
    finally:
        # Also after NoAnswer or Ctrl-C: the figures say where the tokens and the time went.
        if chat.last is not None:
            _report(chat.last, chat.model.load_seconds, options, console, result)
    if options.save is not None:
        chat.save(options.save)
    if answer.finish_reason == "interrupted":
        raise Interrupted(
            f"stopped after {answer.usage.completion_tokens} tokens",
            "Ctrl-C was pressed",
            "run the command again for the whole answer",
        )
    if answer.finish_reason == "length":
        console.warn(cut_off_line(answer))


def _report(
    answer: Answer, load_seconds: float, options: ChatOptions, console: Console, result: ChatResult
) -> None:
    result.set_answer(answer, load_seconds)
    if options.stats:
        console.say(stats_line(answer, load_seconds))
