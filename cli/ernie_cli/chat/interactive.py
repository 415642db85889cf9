"""Chats at a terminal, or line by line from a pipe: what is typed becomes a question or a slash command."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ernie_cli.chat import conversation
from ernie_cli.chat.line_reader import LineReader, make_reader, read_message
from ernie_cli.chat.options import ChatOptions
from ernie_cli.chat.request import check_drawing_path, check_save_path
from ernie_cli.console import Console
from ernie_cli.failures import failure_of
from ernie_cli.images import open_given_images, show_reports, split_paths
from ernie_cli.signals import Terminated
from ernie_cli.videos import open_given_videos
from ernie_local import session
from ernie_local.errors import ErnieLocalError, UsageError
from ernie_local.model_files import ModelFiles


class AskedQuestion(NamedTuple):
    """A question of this session that is no turn of the history."""

    text: str
    images: Sequence[session.ChatMedia]


class SlashCommand(NamedTuple):
    """One command. run: gets the chat and what was typed after the name."""

    arguments: str
    help: str
    run: Callable[[InteractiveChat, str], None]


COMMANDS: dict[str, SlashCommand] = {}


def _slash_command(name: str, arguments: str, help_text: str) -> Callable[[Any], Any]:
    """Makes a method of InteractiveChat a command."""

    def register(run: Any) -> Any:
        COMMANDS[name] = SlashCommand(arguments, help_text, run)
        return run

    return register


class InteractiveChat:
    """One chat with a person, and the slash commands, which change it."""

    def __init__(
        self,
        chat: session.Chat,
        options: ChatOptions,
        files: ModelFiles,
        console: Console,
        tools: Sequence[session.ChatTool] = (),
    ) -> None:
        self.chat = chat
        self._tools = tools
        self._options = options
        self._console = console
        self._waiting: list[session.ChatMedia] = []
        self._files = files
        self._is_over = False
        self._unanswered: AskedQuestion | None = None
        self._sampling = conversation.chat_sampling(options, files)

    def run(self, read: LineReader, first_prompts: Sequence[str] = ()) -> None:
        """Answer line after line until the end of input or /exit."""
        for prompt in first_prompts:
            self._handle(prompt)
        while not self._is_over:
            try:
                line = read_message(read)
            except EOFError:
                return
            except Terminated:
                raise
            except KeyboardInterrupt:
                self._console.say("(Ctrl-D or /exit leaves)")
                continue
            if line.strip():
                self._handle(line)

    def attach(self, images: Sequence[session.ChatMedia]) -> None:
        """Let images and videos wait for the next question, and say what the model will see of them."""
        show_reports(images, self._console)
        self._waiting.extend(images)

    def _handle(self, line: str) -> None:
        """Do what `line` says; an error is shown, and the chat goes on."""
        try:
            if line.startswith("/"):
                self._run_command(line)
            else:
                self._ask(line.strip(), self._waiting)
        except (BrokenPipeError, Terminated):  # the reader of stdout, or whoever started this, is gone
            raise
        except (ErnieLocalError, OSError) as error:
            self._console.error(failure_of(error).text())
        except KeyboardInterrupt:
            self._console.say("stopped")

    def _run_command(self, line: str) -> None:
        name, _, argument = line.strip().partition(" ")
        if name in COMMANDS:
            COMMANDS[name].run(self, argument.strip())
        else:
            self._console.say(
                f"unknown command {name}; /help lists them "
                "(to send text that starts with a slash, type a blank first)"
            )

    def _ask(self, question: str, images: Sequence[session.ChatMedia]) -> None:
        self._unanswered = AskedQuestion(question, tuple(images))
        if self._answer(question, images):
            self._unanswered = None
            self._waiting = [image for image in self._waiting if not any(image is one for one in images)]

    def _answer(self, question: str | None, images: Sequence[session.ChatMedia] = ()) -> bool:
        """Show the answer as `conversation.ask` does, and tell how it went; whether the chat keeps it."""
        before = self.chat.history
        answer = conversation.ask(self.chat, question, images, self._options, self._console)
        is_kept = self.chat.history is not before
        if answer.finish_reason == "interrupted":
            kept = "this turn is kept, /undo forgets it" if is_kept else "nothing is kept of this turn"
            self._console.say(f"stopped; {kept}")
        elif answer.finish_reason == "length":
            self._console.warn(conversation.cut_off_line(answer))
        if self._options.stats:
            self._show_figures()
        return is_kept

    def _show_figures(self) -> None:
        if self.chat.last is None:
            self._console.say("no answer yet")
        else:
            self._console.say(conversation.stats_line(self.chat.last, self.chat.model.load_seconds))

    @_slash_command("/image", "FILE...", "attach images to the next question; clear: drop them; alone: list")
    def _image(self, argument: str) -> None:
        if argument not in ("", "clear"):
            paths, password = split_paths(argument), self._options.password
            opened = open_given_images(paths, console=self._console, password=password)
            self.attach(conversation.measure_images(opened, self._options, self._files))
            return
        self._list_waiting("images", session.ChatImage, is_cleared=bool(argument))

    @_slash_command(
        "/video", "FILE[@START-END]...", "the same with videos; --fps and --frames count for all of them"
    )
    def _video(self, argument: str) -> None:
        if argument not in ("", "clear"):
            paths, options = split_paths(argument), self._options
            with self._console.working("opening videos"):
                opened = open_given_videos(paths, options.fps, options.frames, self._files, self._console)
            self.attach(opened)
            return
        self._list_waiting("videos", session.ChatVideo, is_cleared=bool(argument))

    def _list_waiting(self, noun: str, kind: type[session.ChatMedia], *, is_cleared: bool) -> None:
        """Name what waits of one kind, after it was dropped if `is_cleared`."""
        if is_cleared:
            self._waiting = [one for one in self._waiting if not isinstance(one, kind)]
        waiting = ", ".join(one.name for one in self._waiting if isinstance(one, kind)) or "none"
        self._console.say(f"{noun} waiting for the next question: {waiting}")

    @_slash_command("/think", "on|off|auto", "think before the answers from now on")
    def _think(self, argument: str) -> None:
        if argument in ("on", "off", "auto"):
            self._options = replace(self._options, think=argument)  # type: ignore[arg-type]
        elif argument:
            raise UsageError(f"/think {argument} has no meaning", "it takes on, off or auto", "/think on")
        self._console.say(f"thinking: {self._options.think}")

    @_slash_command("/system", "[TEXT]", "start a new chat with this system text; alone: show it")
    def _system(self, argument: str) -> None:
        if argument:
            self._begin(self._new_chat(argument))
            self._console.say("a new chat begins with this system text")
        else:
            self._console.say(f"system: {self.chat.system or 'none'}")

    @_slash_command("/stats", "[on|off]", "figures of the last answer; on: after each answer")
    def _stats(self, argument: str) -> None:
        if argument in ("on", "off"):
            self._options = replace(self._options, stats=argument == "on")
            self._console.say(f"figures after each answer: {argument}")
        elif argument:
            raise UsageError(f"/stats {argument} has no meaning", "it takes on, off or nothing", "/stats on")
        else:
            self._show_figures()

    @_slash_command("/undo", "", "forget the last question and its answer")
    def _undo(self, _argument: str) -> None:
        text = textwrap.shorten(self.chat.undo().text, 60, placeholder="...")
        self._unanswered = None
        self._console.say(f"forgotten, with its answer: {text}")

    @_slash_command("/retry", "", "ask the last question again, in place of its answer")
    def _retry(self, _argument: str) -> None:
        if self._unanswered is not None:
            self._ask(*self._unanswered)
        else:
            self._answer(None)

    @_slash_command("/clear", "", "start a new chat with the same system text; drops what waits")
    def _clear(self, _argument: str) -> None:
        self._begin(self._new_chat(self.chat.system))
        self._waiting = []
        self._console.say("a new chat begins")

    def _new_chat(self, system: str | None) -> session.Chat:
        settings = conversation.chat_settings(self._options)
        return session.Chat(self.chat.model, system, self._sampling, tools=self._tools, **settings)

    def _begin(self, chat: session.Chat) -> None:
        self.chat, self._unanswered = chat, None

    @_slash_command(
        "/draw", "FILE", "draw the boxes of the last answer on its image, and the moments that it names"
    )
    def _draw(self, argument: str) -> None:
        path = _one_path("/draw", argument)
        check_drawing_path(path)
        answers = [] if self.chat.last is None else [self.chat.last]
        conversation.draw_answers(path, answers, self.chat, self._console)

    @_slash_command("/save", "FILE", "write the chat to a file")
    def _save(self, argument: str) -> None:
        path = _one_path("/save", argument)
        check_save_path(path)
        self.chat.save(path)
        self._console.say(f"chat saved as {path}")

    @_slash_command("/load", "FILE", "continue a chat from a file")
    def _load(self, argument: str) -> None:
        path = _one_path("/load", argument)
        chat = session.Chat.load(
            path,
            self.chat.model,
            self._sampling,
            password=self._options.password,
            tools=self._tools,
            **conversation.chat_settings(self._options),
        )
        self._begin(chat)
        self._console.say(f"continuing {path}")

    @_slash_command("/help", "", "show this list")
    def _help(self, _argument: str) -> None:
        for name, command in COMMANDS.items():
            self._console.say(f"{f'{name} {command.arguments}':<27} {command.help}")
        self._console.say('Anything else is a question; one of several lines starts and ends with """.')

    @_slash_command("/exit", "", "leave (also Ctrl-D)")
    def _exit(self, _argument: str) -> None:
        self._is_over = True


def _one_path(command: str, argument: str) -> Path:
    """The path that the whole of `argument` is, with or without quotes around it."""
    path = argument[1:-1] if argument[:1] in ("'", '"') and argument[-1:] == argument[:1] else argument
    if not path:
        raise UsageError(f"{command} takes 1 path, not 0", "it writes or reads one file", f"{command} FILE")
    return Path(path).expanduser()


def chat_line_by_line(
    options: ChatOptions,
    files: ModelFiles,
    console: Console,
    images: Sequence[session.ChatMedia],
    first_prompts: Sequence[str],
    tools: Sequence[session.ChatTool] = (),
) -> None:
    """Load the model and chat until the person leaves, then save where --save says so."""
    chat = conversation.open_chat(options, files, console, images, tools)
    loop = InteractiveChat(chat, options, files, console, tools)
    loop.attach(images)
    console.note(
        f"{options.model} is ready. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
    )
    reader = make_reader({name: command.arguments for name, command in COMMANDS.items()}, console)
    with (
        conversation.trace_written(options.trace, loop.chat, console),
        conversation.saved_at_the_end(options.save, lambda: loop.chat),
    ):
        loop.run(reader, first_prompts)
    if options.save is not None:
        console.note(f"chat saved as {options.save}")
