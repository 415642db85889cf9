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
    from ernie_local import model_files

    result.model = options.model
    check_options(options)
    request = read_request(
        options.prompt, options.images, interactive=options.interactive, as_json=options.as_json
    )
    console = Console(quiet=options.as_json)
    opened = images.open_given_images(request.images, sys.stdin.buffer if sys.stdin is not None else None)
    files = model_files.find_model_files(options.model)
    from ernie_local import session

    measured = session.open_chat_images(opened, files.image_processor)
    session.check_question(
        files,
        request.prompt or "",
        measured,
        system=options.system,
        thinking=options.thinking(),
        context_size=options.context_tokens(),
    )
    if request.prompt is None or options.interactive:
        interactive.run(options, files, console, measured, request.prompt)
        return
    images.show_reports(measured, console)
    result.set_images([image.report for image in measured])
    chat = opening.open_chat(options, files, console)
    with opening.trace_written(options.trace, chat, console):
        one_shot.run(chat, options, console, request.prompt, measured, result)
