"""The command `ernie-local chat`: the order of its steps, and one question from the command line.

Everything that can be wrong is checked before the model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ernie_cli.chat.options import ChatOptions
from ernie_cli.chat.request import check_chat_options, read_questions
from ernie_cli.console import Console
from ernie_cli.form_options import note_form
from ernie_cli.images import open_given_images, show_reports
from ernie_cli.videos import check_given_videos, check_idle_sampling, open_given_videos
from ernie_local.errors import Interrupted

if TYPE_CHECKING:
    from ernie_cli.chat.result import ChatResult
    from ernie_local.media.open_image import OpenedImage
    from ernie_local.session import Answer, Chat, ChatMedia


def chat(options: ChatOptions, result: ChatResult) -> None:
    """Ask about images and text: once with -p or a pipe, otherwise in a chat.

    The answer goes to stdout, everything else to stderr.
    """
    from ernie_cli.progress import downloaded
    from ernie_local import model_files

    result.model = options.model
    check_chat_options(options)
    questions = read_questions(options, sys.stdin)
    console = Console(quiet=options.as_json)
    opened = _open_images(options, console, is_interactive=not questions or options.interactive)
    max_pixels, image_tokens = options.max_pixels_count(), options.image_tokens_count()
    files = model_files.find_model_files(
        downloaded(options.model, console), max_pixels=max_pixels, image_tokens=image_tokens
    )
    with console.working("starting"):
        from ernie_cli.chat import conversation, interactive
        from ernie_cli.chat.tool_calls import make_tools
        from ernie_local import session

        tools = make_tools(options, console)
        images = conversation.measure_images(opened, options, files)
        videos = open_given_videos(options.videos, options.fps, options.frames, files, console)
        measured: list[ChatMedia] = [*images, *videos]
        session.check_first_question(
            files,
            questions[0] if questions else "",
            measured,
            system=options.system,
            thinking=options.thinking(),
            context_size=options.context_tokens(),
            variant=options.variant,
            form=options.form,
            tools=tools,
        )
        if options.draw is not None:
            session.drawing_paths(options.draw, images)
    if options.form is not None and options.form.instruction:
        note_form(console, options.model, "--bare-question")
    if not questions or options.interactive:
        interactive.chat_line_by_line(options, files, console, measured, questions, tools)
        return
    show_reports(measured, console)
    result.set_images([image.report for image in images])
    result.set_videos([video.report for video in videos])
    opened_chat = conversation.open_chat(options, files, console, measured, tools)
    with (
        conversation.trace_written(options.trace, opened_chat, console),
        conversation.saved_at_the_end(options.save, lambda: opened_chat),
    ):
        attached: Sequence[ChatMedia] = measured
        answers: list[Answer] = []
        for question in questions:
            result.begin_question()
            answers.append(_answer_once(opened_chat, options, console, question, attached, result))
            attached = ()
        if options.draw is not None:
            result.drawings = conversation.draw_answers(options.draw, answers, opened_chat, console)


def _open_images(options: ChatOptions, console: Console, *, is_interactive: bool) -> list[OpenedImage]:
    """Those of the first question, whose videos are looked at as well, before a model is.

    is_interactive: videos may come later, so that --fps and --frames mean something without one.
    """
    with console.working("opening images"):
        stdin = None if sys.stdin is None else sys.stdin.buffer
        opened = open_given_images(options.images, stdin, console, options.password)
        check_given_videos(options.videos, options.fps, options.frames)
        if not is_interactive:
            check_idle_sampling(options.videos, options.fps, options.frames)
    return opened


def _answer_once(
    chat: Chat,
    options: ChatOptions,
    console: Console,
    question: str,
    images: Sequence[ChatMedia],
    result: ChatResult,
) -> Answer:
    """Answer the question; raises Interrupted or NoAnswer where that is how it ended."""
    from ernie_cli.chat.conversation import ask, cut_off_line, stats_line

    before = chat.last
    try:
        answer = ask(chat, question, images, options, console)
    finally:
        # Also after NoAnswer or Ctrl-C: the figures say where the tokens and the time went.
        if chat.last is not None and chat.last is not before:
            result.set_answer(chat.last, chat.model.load_seconds)
            if options.stats:
                console.say(stats_line(chat.last, chat.model.load_seconds))
    if answer.finish_reason == "interrupted":
        raise Interrupted(
            f"stopped after {answer.usage.completion_tokens} tokens",
            "Ctrl-C was pressed",
            "run the command again for the whole answer",
        )
    if answer.finish_reason == "length":
        console.warn(cut_off_line(answer))
    return answer
