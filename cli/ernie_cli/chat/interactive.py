"""Chats at a terminal, or line by line from a pipe: what is typed becomes a question or a slash command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.chat import opening, slash_commands
from ernie_cli.chat.answering import AskSettings, ask, cut_off_line, stats_line
from ernie_cli.chat.line_reader import LineReader, make_reader, read_message
from ernie_cli.chat.options import ChatOptions
from ernie_cli.console import Console
from ernie_cli.failures import failure_of
from ernie_cli.images import show_reports
from ernie_local.errors import ErnieLocalError

if TYPE_CHECKING:
    from ernie_local.media.open_image import OpenedImage
    from ernie_local.model_files import ModelFiles
    from ernie_local.session import Chat, ChatImage


class InteractiveChat:
    """One chat with a person. The attributes are what the slash commands change."""

    def __init__(self, chat: Chat, options: ChatOptions, files: ModelFiles, console: Console) -> None:
        self.chat = chat
        self.options = options
        self.console = console
        self.show_stats = options.stats
        self.waiting: list[ChatImage] = []
        self.settings = AskSettings(
            thinking=options.thinking(),
            think_budget=options.think_budget_count(),
            max_tokens=options.max_tokens_count(),
            hide_thinking=options.hide_thinking,
            stream=not options.no_stream,
        )
        self._files = files
        self._sampling = opening.chat_sampling(options, files)

    def run(self, reader: LineReader, first_prompt: str | None = None) -> None:
        """Answer line after line until the end of input or /exit."""
        if first_prompt is not None:
            self._guarded(first_prompt)
        while True:
            try:
                line = read_message(reader)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.say("(Ctrl-D or /exit leaves)")
                continue
            if line.strip() and not self._guarded(line):
                return

    def attach(self, images: Sequence[OpenedImage | ChatImage]) -> None:
        """Let images wait for the next question, and say what the model will see of them."""
        from ernie_local.session import open_chat_images

        measured = open_chat_images(images, self._files.image_processor)
        show_reports(measured, self.console)
        self.waiting.extend(measured)

    def restart(self, system: str) -> None:
        """Begin a new chat with this system text."""
        from ernie_local.session import Chat

        self.chat = Chat(self.chat.model, system, self._sampling)

    def resume(self, path: Path) -> None:
        """Continue a saved chat instead of this one."""
        from ernie_local.session import Chat

        self.chat = Chat.load(path, self.chat.model, self._sampling)

    def set_thinking(self, thinking: bool | None) -> None:
        """How the answers from now on begin."""
        self.settings = replace(self.settings, thinking=thinking)

    def show_figures(self) -> None:
        """Say how the last answer went."""
        if self.chat.last is None:
            self.console.say("no answer yet")
        else:
            self.console.say(stats_line(self.chat.last, self.chat.model.load_seconds))

    def _guarded(self, line: str) -> bool:
        """Do what `line` says; an error is shown, and the chat goes on. False when the chat is to end."""
        try:
            if line.startswith("/"):
                return slash_commands.run_slash_command(self, line)
            self._ask(line)
        except BrokenPipeError:  # the reader of stdout is gone
            raise
        except (ErnieLocalError, OSError) as error:
            self.console.error(failure_of(error).text())
        except KeyboardInterrupt:
            self.console.say("stopped")
        return True

    def _ask(self, question: str) -> None:
        num_turns = len(self.chat.history)
        answer = ask(self.chat, question.strip(), self.waiting, self.settings, self.console)
        is_kept = len(self.chat.history) > num_turns
        if is_kept:
            self.waiting = []
        if answer.finish_reason == "interrupted":
            kept = "this turn is kept, /undo forgets it" if is_kept else "nothing is kept of this turn"
            self.console.say(f"stopped; {kept}")
        elif answer.finish_reason == "length":
            self.console.warn(cut_off_line(answer))
        if self.show_stats:
            self.show_figures()


def chat_line_by_line(
    options: ChatOptions,
    files: ModelFiles,
    console: Console,
    images: Sequence[ChatImage],
    first_prompt: str | None,
) -> None:
    """Load the model and chat until the person leaves, then save where --save says so."""
    loop = InteractiveChat(opening.open_chat(options, files, console), options, files, console)
    loop.attach(images)
    reader = make_reader(slash_commands.command_names(), slash_commands.PATH_COMMANDS)
    console.note(
        f"{options.model} is ready. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
    )
    with opening.trace_written(options.trace, loop.chat, console):
        loop.run(reader, first_prompt)
    if options.save is not None:
        loop.chat.save(options.save)
        console.note(f"chat saved as {options.save}")
