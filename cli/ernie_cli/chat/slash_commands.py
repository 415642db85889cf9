"""Runs the commands inside a chat: /image, /think and the others, each with its line of help."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.chat.request import check_save_path
from ernie_cli.images import open_given_images, split_paths
from ernie_local.errors import UsageError

if TYPE_CHECKING:
    from ernie_cli.chat.interactive import InteractiveChat


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One command; `act` gets the chat and what was typed after the name; False ends the chat."""

    arguments: str
    help: str
    act: Callable[[InteractiveChat, str], bool]


def run_slash_command(chat: InteractiveChat, line: str) -> bool:
    """Do what `line`, which starts with a slash, says; False when the chat is to end."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        chat.console.say(
            f"unknown command {name}; /help lists them "
            "(to send text that starts with a slash, type a blank first)"
        )
        return True
    return command.act(chat, argument.strip())


def command_names() -> list[str]:
    """All commands, for completion."""
    return list(COMMANDS)


def _image(chat: InteractiveChat, argument: str) -> bool:
    if argument == "clear":
        chat.waiting.clear()
    elif argument:
        chat.attach(open_given_images(split_paths(argument)))
        return True
    waiting = ", ".join(image.name for image in chat.waiting) or "none"
    chat.console.say(f"images waiting for the next question: {waiting}")
    return True


def _think(chat: InteractiveChat, argument: str) -> bool:
    meanings: Mapping[str, bool | None] = {"on": True, "off": False, "auto": None}
    if argument in meanings:
        chat.set_thinking(meanings[argument])
    elif argument:
        raise UsageError(f"/think {argument} has no meaning", "it takes on, off or auto", "/think on")
    word = next(word for word, value in meanings.items() if value is chat.settings.thinking)
    chat.console.say(f"thinking: {word}")
    return True


def _system(chat: InteractiveChat, argument: str) -> bool:
    if argument:
        chat.restart(argument)
        chat.console.say("a new chat begins with this system text")
    else:
        chat.console.say(f"system: {chat.chat.system or 'none'}")
    return True


def _stats(chat: InteractiveChat, argument: str) -> bool:
    if argument in ("on", "off"):
        chat.show_stats = argument == "on"
        chat.console.say(f"figures after each answer: {argument}")
    elif argument:
        raise UsageError(f"/stats {argument} has no meaning", "it takes on, off or nothing", "/stats on")
    else:
        chat.show_figures()
    return True


def _undo(chat: InteractiveChat, argument: str) -> bool:
    del argument
    turn = chat.chat.undo()
    chat.console.say(f"forgotten, with its answer: {textwrap.shorten(turn.text, 60, placeholder='...')}")
    return True


def _save(chat: InteractiveChat, argument: str) -> bool:
    path = _one_path("/save", argument)
    check_save_path(path)
    chat.chat.save(path)
    chat.console.say(f"chat saved as {path}")
    return True


def _load(chat: InteractiveChat, argument: str) -> bool:
    path = _one_path("/load", argument)
    chat.resume(path)
    chat.console.say(f"continuing {path}")
    return True


def _help(chat: InteractiveChat, argument: str) -> bool:
    del argument
    for name, command in COMMANDS.items():
        chat.console.say(f"{f'{name} {command.arguments}':<22} {command.help}")
    chat.console.say('Anything else is a question; one of several lines starts and ends with """.')
    return True


def _exit(chat: InteractiveChat, argument: str) -> bool:
    del chat, argument
    return False


def _one_path(command: str, argument: str) -> Path:
    """The path that the whole of `argument` is, with or without quotes around it."""
    path = argument[1:-1] if argument[:1] in ("'", '"') and argument[-1:] == argument[:1] else argument
    if not path:
        raise UsageError(f"{command} takes 1 path, not 0", "a chat is one file", f"{command} chat.json")
    return Path(path).expanduser()


COMMANDS: Mapping[str, SlashCommand] = {
    "/image": SlashCommand(
        "FILE...", "attach images to the next question; clear: drop them; alone: list", _image
    ),
    "/think": SlashCommand("on|off|auto", "think before the answers from now on", _think),
    "/system": SlashCommand("[TEXT]", "start a new chat with this system text; alone: show it", _system),
    "/stats": SlashCommand("[on|off]", "figures of the last answer; on: after each answer", _stats),
    "/undo": SlashCommand("", "forget the last question and its answer", _undo),
    "/save": SlashCommand("FILE", "write the chat to a file", _save),
    "/load": SlashCommand("FILE", "continue a chat from a file", _load),
    "/help": SlashCommand("", "show this list", _help),
    "/exit": SlashCommand("", "leave (also Ctrl-D)", _exit),
}

# The commands after which Tab completes paths.
PATH_COMMANDS = ("/image", "/save", "/load")
