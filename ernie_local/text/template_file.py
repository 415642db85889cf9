"""Finds the chat template among a model's files, and writes conversations with it.

It is a Jinja program of strangers. It runs in a sandbox in a process of its own, and only what it writes
itself can become a tag: in all texts that it is given, the letters at both ends of tags are replaced by
others, which are turned back when the tags have been found. A template that makes those letters of others,
as by unescaping HTML, is found by a second rendering: with texts that say nothing, it has to write the same
tags.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ernie_local.errors import ModelUnusable, parameter
from ernie_local.files import read_plain
from ernie_local.sizes import format_bytes
from ernie_local.text.reasoning import THINK_CLOSE, THINK_OPEN
from ernie_local.text.special_tokens import TOKENIZER_CONFIG_NAME, read_named_tokens, read_object_if_there
from ernie_local.text.template import (
    BEGIN,
    END,
    THINKING_SYSTEM,
    ChatTemplate,
    ImageSlot,
    Message,
    Segment,
    Tag,
    Thinking,
    Variant,
    VideoSlot,
    parse_template,
)
from ernie_local.text.tokenizer import ErnieTokenizer

# Each of these is in the Thinking template alone: the PT template has no tools.
_THINKING_MARKS = ("tool_list", "tool_output", "tool_call", THINKING_SYSTEM)
_JINJA_NAME, _JSON_NAME = "chat_template.jinja", "chat_template.json"
_MAX_TEMPLATE_BYTES = 16 << 20
FILE_TEMPLATE: Literal["file"] = "file"
# Both are in the template of models that read only text and answer at once, and not in that of the others.
_LINE_MARKS = ("User: ", "Assistant: ")
# A conversation takes some milliseconds and MB.
RENDER_SECONDS = 10
_RENDER_BYTES = 1 << 30
# What a template adds to the texts that it is given.
_ADDED_CHARACTERS = 1 << 20
# The process finds the packages of this one. -P: never those of the folder that it runs in.
_FIND_PACKAGES = "import json, sys; sys.path[:] = json.loads(sys.argv[1])"
_COMMAND = ("-P", "-c", f"{_FIND_PACKAGES}; from ernie_local.text.jinja_process import main; main()")
_MEDIA = re.compile(
    r"<\|(IMAGE|VIDEO)_START\|>(?:<\|(?:image|video)@placeholder\|>|<\|(?:IMAGE|VIDEO)_PLACEHOLDER\|>)<\|\1_END\|>"
)
_LONE_PLACEHOLDER = re.compile(r"<\|(?:image|video)@placeholder\|>|<\|(?:IMAGE|VIDEO)_PLACEHOLDER\|>")
_FIRST_GUARD = 0xE000  # of the private use area
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_SAYS_SOMETHING = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class TemplateInput:
    """A conversation and how it is written: the arguments of `segments` of a template."""

    messages: Sequence[Message]
    system: str | None = None
    tools: Sequence[Mapping[str, object]] = ()
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True)
class FileTemplate:
    """The chat template of a model's own files. sources: by name; most models have "default" alone."""

    path: Path
    sources: Mapping[str, str]
    named_tokens: Mapping[str, str]
    tokenizer: ErnieTokenizer

    @property
    def thinks_by_default(self) -> Thinking:
        """As the file has it."""
        return "free"

    def segments(
        self,
        messages: Sequence[Message],
        system: str | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        thinking: Thinking | None = None,
    ) -> list[Segment]:
        """The conversation as the file writes it; arguments as of ChatTemplate.

        "free" tells the template nothing of thoughts. ModelUnusable where the template fails, takes too long
        or too much memory, or leaves out a question or an image.
        """
        return self.all_segments([TemplateInput(messages, system, tools, thinking)])[0]

    def forced_close(self) -> list[Segment]:
        """What ends the reasoning from outside: both published templates have the same."""
        return ChatTemplate("pt").forced_close()

    def all_segments(self, inputs: Sequence[TemplateInput]) -> list[list[Segment]]:
        """`segments` of each input, in one run of the template's process."""
        given = json.dumps([_texts_of(one) for one in inputs], ensure_ascii=False)
        marks = {THINK_OPEN, THINK_CLOSE, BEGIN, END, *self.tokenizer.special_texts}
        letters = sorted({letter for mark in marks for letter in (mark[0], mark[-1])})
        unused = (chr(code) for code in range(_FIRST_GUARD, sys.maxunicode) if chr(code) not in given)
        guards = {ord(letter): ord(next(unused)) for letter in letters}
        # Without messages most templates fail, and nothing is said.
        said = [one for one in inputs if one.messages]
        both = [self._variables(which, guards) for one in said for which in (one, _without_words(one))]
        written = iter(self._render(both, len(given)) if both else ())
        return [
            self._read(one, next(written), next(written), guards) if one.messages else [] for one in inputs
        ]

    def _source(self, has_tools: bool) -> str:
        name = "tool_use" if has_tools and "tool_use" in self.sources else "default"
        if name in self.sources:
            return self.sources[name]
        raise _unusable(self.path, f"its templates are {', '.join(self.sources)}, and none is named default")

    def _variables(self, one: TemplateInput, guards: Mapping[int, int]) -> dict[str, object]:
        """What the template sees."""
        source = self._source(bool(one.tools))
        messages = [_message_object(message, source) for message in one.messages]
        if one.system is not None and one.messages[0].role != "system":
            messages.insert(0, {"role": "system", "content": one.system})
        variables: dict[str, object] = {
            **self.named_tokens,
            "messages": [_guarded(message, guards) for message in messages],
            "tools": _guarded(list(one.tools), guards) if one.tools else None,
            "documents": None,
            "add_generation_prompt": one.thinking is not None,
        }
        if isinstance(one.thinking, bool):
            # PT is asked by the first name, Thinking by the second, or by the third around it.
            options = {"thinking_mode": "open" if one.thinking else "close"}
            variables |= {
                "enable_thinking": one.thinking,
                "options": options,
                "chat_template_kwargs": {"enable_thinking": one.thinking, "options": options},
            }
        return {"source": source, "variables": variables}

    def _render(self, renderings: Sequence[Mapping[str, object]], num_given: int) -> list[str]:
        job = {
            "renderings": renderings,
            "seconds": RENDER_SECONDS,
            "memory_bytes": _RENDER_BYTES,
            "characters": num_given + _ADDED_CHARACTERS,
        }
        done = subprocess.run(
            [sys.executable, *_COMMAND, json.dumps(sys.path)],
            input=json.dumps(job).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise _unusable(
                self.path,
                f"its process ended with code {done.returncode}; it may take {RENDER_SECONDS} seconds and "
                f"{format_bytes(_RENDER_BYTES)}",
            )
        results = json.loads(done.stdout)
        for result in results:
            if "error" in result:
                raise _unusable(self.path, result["error"])
        return [result["text"] for result in results]

    def _read(
        self, one: TemplateInput, written: str, without_words: str, guards: Mapping[int, int]
    ) -> list[Segment]:
        """Segments of what the template has written, of the conversation and of one without words."""
        if _HALF_A_PAIR.search(without_words):
            raise _unusable(self.path, "it writes half of a surrogate pair, which has no UTF-8 form")
        if self._tags(written) != self._tags(without_words):
            raise _unusable(self.path, "it makes tags of what messages say, and a user must not write any")
        for what, text in _expected_texts(one):
            if text.strip().translate(guards) not in written:
                raise _unusable(self.path, f"it leaves out {what}")
        slots = [part for message in one.messages for part in message.parts if not isinstance(part, str)]
        between = _MEDIA.split(written)
        kinds = [ImageSlot if kind == "IMAGE" else VideoSlot for kind in between[1::2]]
        if kinds != list(map(type, slots)) or any(map(_LONE_PLACEHOLDER.search, between[::2])):
            raise _unusable(
                self.path,
                f"it writes {len(kinds)} images and videos between their tags, "
                f"the conversation has {len(slots)}",
            )
        unguarded = {guard: letter for letter, guard in guards.items()}
        segments: list[Segment] = []
        for index, text in enumerate(between[::2]):
            segments += [slots[index - 1]] if index else []
            segments += self._segments_of_text(text, unguarded)
        return segments

    def _tags(self, written: str) -> list[str]:
        thoughts = re.findall(f"{THINK_OPEN}|{THINK_CLOSE}", written)
        return [*self.tokenizer.split_at_tags(written)[1::2], *thoughts]

    def _segments_of_text(self, text: str, unguarded: Mapping[int, int]) -> Iterator[Segment]:
        # The vocabulary may lack tags of thoughts; they still say where a thought begins.
        for index, part in enumerate(self.tokenizer.split_at_tags(text)):
            if index % 2:
                yield Tag(part)
                continue
            for place, piece in enumerate(re.split(f"({THINK_OPEN}|{THINK_CLOSE})", part)):
                if piece:
                    yield Tag(piece) if place % 2 else piece.translate(unguarded)


Template = ChatTemplate | FileTemplate


def open_template(name: str, directory: Path, tokenizer: ErnieTokenizer) -> Template:
    """The template that `name` says, as by `parse_template`, or "file".

    UsageError for an unknown name, ModelUnusable where the files have no template, or a broken one.
    """
    if name != FILE_TEMPLATE:
        return parse_template(name)
    template = read_file_template(directory, tokenizer)
    if template is None:
        raise ModelUnusable(
            f"{directory} has no chat template for {parameter('variant', FILE_TEMPLATE)}",
            f"it would be in {_JINJA_NAME}, {_JSON_NAME} or {TOKENIZER_CONFIG_NAME}",
            f"leave out {parameter('variant')}, or copy the file from the model's original repository",
        )
    return template


def read_file_template(directory: Path, tokenizer: ErnieTokenizer) -> FileTemplate | None:
    """The template among the files of `directory`, of several the one that transformers takes."""
    for path, content in _template_contents(directory):
        if isinstance(content, list):
            sources = {}
            for entry in content:
                name, source = (
                    entry.get(key) if isinstance(entry, dict) else None for key in ("name", "template")
                )
                if not isinstance(name, str) or not isinstance(source, str):
                    raise _unusable(path, "an entry of its chat_template is not a name with a template")
                sources[name] = source
        elif isinstance(content, str):
            sources = {"default": content}
        else:
            raise _unusable(path, "its chat_template is neither a text nor a list")
        return FileTemplate(path, sources, read_named_tokens(directory), tokenizer)
    return None


def detect_template(directory: Path, *, reads_images: bool = True) -> Variant | Literal["file"]:
    """The name of the template that the files of `directory` say; without any, PT or text.

    Of a model that reads only text it is that of the files wherever they have another than ours.
    ModelUnusable for a template that is there and cannot be read.
    """
    texts = [json.dumps(content, ensure_ascii=False) for _, content in _template_contents(directory)]
    if not reads_images:
        is_ours = all(mark in text for mark in _LINE_MARKS for text in texts[:1])
        return "text" if is_ours else FILE_TEMPLATE
    return "thinking" if any(mark in text for mark in _THINKING_MARKS for text in texts) else "pt"


def _template_contents(directory: Path) -> Iterator[tuple[Path, object]]:
    """The chat templates of each file that has one, in the order in which transformers looks for them."""
    path = directory / _JINJA_NAME
    if os.path.lexists(path):
        yield path, _read_template(path)
    for path in (directory / _JSON_NAME, directory / TOKENIZER_CONFIG_NAME):
        content = read_object_if_there(path).get("chat_template")
        if content is not None:
            yield path, content


def _read_template(path: Path) -> str:
    try:
        return read_plain(path, _MAX_TEMPLATE_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise ModelUnusable(
            f"the chat template {path} cannot be read",
            error.strerror or str(error),
            "check its permissions, or fetch the model's files again",
        ) from error


def _unusable(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"the chat template in {path} cannot be used",
        why,
        f"{parameter('variant', 'thinking')} or {parameter('variant', 'pt')}, which need no file",
    )


def _message_object(message: Message, source: str) -> dict[str, object]:
    """The message as OpenAI's interface has it, with the kinds of parts that the template's source names."""
    content: str | list[dict[str, object]] = message.text
    if not all(isinstance(part, str) for part in message.parts):
        content = []
        for part in message.parts:
            kind = "text" if isinstance(part, str) else "image" if isinstance(part, ImageSlot) else "video"
            if kind != "text" and f"{kind}_url" in source:
                kind = f"{kind}_url"
            content.append({"type": kind, kind: part if isinstance(part, str) else {"url": ""}})
    written: dict[str, object] = {"role": message.role, "content": content}
    if message.reasoning:
        written |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls:
        functions = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        written["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return written


def _without_words(one: TemplateInput) -> TemplateInput:
    """The same conversation with an x in place of each letter. An empty text stays one, and a line a line."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return _SAYS_SOMETHING.sub("x", value)
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

    messages = [
        replace(
            message,
            content=plain(message.content),
            reasoning=plain(message.reasoning),
            tool_calls=tuple(replace(call, arguments=plain(call.arguments)) for call in message.tool_calls),
        )
        for message in one.messages
    ]
    return replace(one, messages=messages, system=plain(one.system))


def _texts_of(one: TemplateInput) -> list[object]:
    """All that strangers wrote in it, as JSON values."""
    return [one.system, list(one.tools), [_message_object(message, "") for message in one.messages]]


def _expected_texts(one: TemplateInput) -> Iterator[tuple[str, str]]:
    """What every prompt has to contain, with words for it. Of answers, templates may drop parts."""
    for number, message in enumerate(one.messages, start=1):
        if message.role != "assistant":
            yield from (
                (f"a text of message {number}", part) for part in message.parts if isinstance(part, str)
            )
    if one.messages[0].role != "system":
        yield "the system text", one.system or ""
    for tool in one.tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        yield "a tool", name if isinstance(name, str) else ""


def _guarded(value: object, guards: Mapping[int, int]) -> object:
    """The same with the guarded letters replaced in every text."""
    if isinstance(value, str):
        return value.translate(guards)
    if isinstance(value, Mapping):
        return {_guarded(key, guards): _guarded(item, guards) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(item, guards) for item in value]
    return value
