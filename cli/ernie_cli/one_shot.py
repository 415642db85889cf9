"""One question from the command line: asked, answered, and turned into an exit code.

Knows nothing of the chat at a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ernie_cli.answering import AskSettings, ask, cut_off_line, stats_line
from ernie_cli.chat_options import ChatOptions
from ernie_cli.console import Console
from ernie_local.errors import Interrupted

if TYPE_CHECKING:
    from ernie_cli.chat_result import ChatResult
    from ernie_local.session import Answer, Chat, ChatImage


def run(
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
