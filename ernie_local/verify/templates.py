"""Compares the chat template among a model's files with ours, on one conversation after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ernie_local.errors import parameter
from ernie_local.strict_json import show
from ernie_local.text.reasoning import ToolCall
from ernie_local.text.template import (
    IMAGE_END,
    IMAGE_PLACEHOLDER,
    IMAGE_START,
    ChatTemplate,
    ImageSlot,
    Message,
    Segment,
    Tag,
    Thinking,
    Variant,
    user_message,
)
from ernie_local.text.template_file import FILE_TEMPLATE, TemplateInput, detect_template, read_file_template
from ernie_local.text.tokenizer import ErnieTokenizer

_SHOWN_BEFORE, _SHOWN_BEHIND = 40, 60
_WHAT = Message("user", "What is the total?")
_TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object"}}}
_TURNS = (
    user_message("one", (1,)),
    Message("assistant", "first", "because\nso"),
    Message("user", ("two", ImageSlot(1), " or ", ImageSlot(1))),
    Message("assistant", "second"),
    _WHAT,
)
_LINES = (Message("user", "one"), Message("assistant", "first"), _WHAT)
_CALLS = (
    user_message("Read the sign.", (1,)),
    Message("assistant", "", "zoom in", (ToolCall("zoom", {"bbox_2d": [1, 2, 3, 4]}),)),
    Message("tool", (ImageSlot(1), "done")),
)


def compare_template(directory: Path, tokenizer: ErnieTokenizer, *, reads_images: bool = True) -> str | None:
    """A note on the first conversation that the file writes otherwise, with both texts around the place.

    None where all are written alike, where the files have no template, and where theirs is the one that is
    used. It is no fault: which of the two
    the model was trained with is not known. ModelUnusable for a template that fails.
    """
    file = read_file_template(directory, tokenizer)
    variant = detect_template(directory, reads_images=reads_images)
    if file is None or variant == FILE_TEMPLATE:
        return None
    ours = ChatTemplate(variant)
    cases = _cases(variant)
    for (name, one), segments in zip(cases, file.all_segments([one for _, one in cases]), strict=True):
        thinking = ours.thinks_by_default if one.thinking == "free" else one.thinking
        here = _written(ours.segments(one.messages, one.system, one.tools, thinking))
        there = _written(segments)
        if here == there:
            continue
        place = next(
            (at for at, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1]), None
        )
        place = min(len(here), len(there)) if place is None else place
        around = slice(max(place - _SHOWN_BEFORE, 0), place + _SHOWN_BEHIND)
        return (
            f"the chat template in {file.path} writes {name}, {_told(one.thinking)}, otherwise than ours "
            f"for {variant}, from character {place} on: the file {_shown(there[around])}, ours "
            f"{_shown(here[around])}; {parameter('variant', 'file')} asks as the file says"
        )
    return None


def _cases(variant: Variant) -> list[tuple[str, TemplateInput]]:
    """Conversations with their names, plain ones first."""
    if variant == "text":
        return [
            (name, TemplateInput(messages, system, (), thinking))
            for name, messages, system in (
                ("a text", (_WHAT,), None),
                ("a system text", (_WHAT,), "Be brief."),
                ("several turns", _LINES, None),
            )
            for thinking in (False, "free")
        ]
    talks: dict[str, TemplateInput] = {
        "a text": TemplateInput((_WHAT,)),
        "an image and a text": TemplateInput((user_message("What is it?", (1,)),)),
        "an image between texts": TemplateInput((Message("user", ("Is ", ImageSlot(1), " red?")),)),
        "a system text": TemplateInput((_WHAT,), "Be brief."),
        "several turns": TemplateInput(_TURNS),
    }
    if variant == "thinking":
        talks["tools"] = TemplateInput((_WHAT,), "Be brief.", (_TOOL,))
        talks["the output of a tool"] = TemplateInput(_CALLS, None, (_TOOL,))
    choices: Sequence[Thinking] = (True, False, "free")
    return [
        (name, TemplateInput(one.messages, one.system, one.tools, thinking))
        for name, one in talks.items()
        for thinking in choices
    ]


def _told(thinking: Thinking | None) -> str:
    return "thinking by default" if thinking == "free" else f"thinking {'on' if thinking else 'off'}"


def _shown(text: str) -> str:
    # A message would join the spaces of a row.
    return show(text).replace("  ", " \\x20")


def _written(segments: Sequence[Segment]) -> str:
    image = f"{IMAGE_START}{IMAGE_PLACEHOLDER}{IMAGE_END}"
    return "".join(
        one if isinstance(one, str) else one.text if isinstance(one, Tag) else image for one in segments
    )
