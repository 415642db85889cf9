"""The command `ernie-local chat`: the order of its steps.

Everything that can be wrong is checked before the model is loaded.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ernie_cli.chat_options import ChatOptions

if TYPE_CHECKING:
    from ernie_cli.chat_result import ChatResult


def chat(options: ChatOptions, result: ChatResult) -> None:
    """Ask about images and text: once with -p or a pipe, otherwise in a chat.

    The answer goes to stdout, everything else to stderr.
    """
    from ernie_cli import images, interactive, one_shot, opening
    from ernie_cli.chat_checks import check_options
    from ernie_cli.chat_request import read_request
    from ernie_cli.console import Console

    result.model = options.model
    check_options(options)
    request = read_request(
        options.prompt, options.images, interactive=options.interactive, as_json=options.as_json
    )
    console = Console(quiet=options.as_json)
    opened = images.open_given_images(request.images, sys.stdin.buffer if sys.stdin is not None else None)
    files = opening.find_model(options.model)
    reports = opening.check_prompt(options, files, request.prompt or "", opened)
    if request.prompt is None or options.interactive:
        interactive.run(options, files, console, opened, request.prompt)
        return
    images.show_reports(reports, opened, console)
    result.set_images(reports)
    chat = opening.open_chat(options, files, console)
    with opening.trace_written(options, chat, console):
        one_shot.run(chat, options, console, request.prompt, opened, result)
