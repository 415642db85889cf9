"""Holds golden answers: prompts, and the token ids with which the published weights began to answer them.

A model's own are in its golden.json; those of the published Thinking weights come with the package. The form
of the file is in docs/format.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ernie_local.config import TextConfig
from ernie_local.config.keys import Keys
from ernie_local.errors import ModelUnusable
from ernie_local.file_names import GOLDEN_FILE, is_file_name
from ernie_local.model_files import ModelFiles
from ernie_local.strict_json import read_json_object, show

_OF_THINKING = Path(__file__).parent / "golden-thinking.json"
_LARGEST_SIDE = 4096  # of an image or a frame
_MOST_FRAMES = 180


@dataclass(frozen=True, slots=True)
class GoldenImage:
    """An image file in the model's directory, resized to (width, height) `size` before anything else."""

    path: Path
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class GoldenVideo:
    """Frames of one colour each, (red, green, blue); every frame has (width, height) `size` at first, and
    `pixels` pixels for the model."""

    frames: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]
    pixels: int


GoldenKind = Literal["text", "image", "video"]
GoldenPart: TypeAlias = "str | GoldenImage | GoldenVideo"


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A user's question, its parts in their order, and the first ids of the greedy answer."""

    name: str
    content: tuple[GoldenPart, ...]
    token_ids: tuple[int, ...]

    @property
    def kind(self) -> GoldenKind:
        """What it shows besides text."""
        if any(isinstance(part, GoldenVideo) for part in self.content):
            return "video"
        return "image" if any(isinstance(part, GoldenImage) for part in self.content) else "text"


@dataclass(frozen=True, slots=True)
class GoldenPrompts:
    """Golden prompts of one model. source: who computed the ids. thinking: whether a thought was opened."""

    source: str
    thinking: bool
    prompts: tuple[GoldenPrompt, ...]


def find_golden(files: ModelFiles) -> GoldenPrompts:
    """The golden prompts of a model: its own, else those of the published weights with its sizes.

    ModelUnusable where there are none, and for a golden.json that is damaged.
    """
    own = files.directory / GOLDEN_FILE
    if os.path.lexists(own):
        return _read(own, files)
    text = files.config.text
    sizes = Keys(read_json_object(_OF_THINKING), str(_OF_THINKING)).mapping("sizes")
    if files.template_name == "thinking" and sizes == {name: getattr(text, name) for name in sizes}:
        return _read(_OF_THINKING, files)
    raise ModelUnusable(
        f"no golden answers are known for {files.directory}, a {files.template_name} model of "
        f"{text.num_hidden_layers} layers of width {text.hidden_size}",
        "they are known of ERNIE-4.5-VL-28B-A3B-Thinking, and of models with a golden.json of their own",
        "verify without them, or compare it with its source by `ernie-local eval`",
    )


def _read(path: Path, files: ModelFiles) -> GoldenPrompts:
    raw, text = read_json_object(path), files.config.text
    keys = Keys(raw, str(path))
    keys.value("sizes")
    source = keys.value("source")
    if not isinstance(source, str):
        raise keys.refuse("source", f"is {show(source)}, a text is expected")
    thinking = keys.boolean("thinking", True)
    listed = keys.sequence("prompts")
    keys.finish()
    prompts = tuple(
        _prompt(one, f"{path}: prompts[{index}]", files, text) for index, one in enumerate(listed)
    )
    if not prompts:
        raise keys.refuse("prompts", "is an empty list")
    return GoldenPrompts(source, thinking, prompts)


def _prompt(raw: object, where: str, files: ModelFiles, text: TextConfig) -> GoldenPrompt:
    keys = Keys(_object(raw, where), where)
    name = keys.value("name")
    if not isinstance(name, str) or not name:
        raise keys.refuse("name", f"is {show(name)}, a text is expected")
    token_ids = keys.integers("ids", low=0)
    if not token_ids or max(token_ids) >= text.vocab_size:
        problem = f"has {len(token_ids)} ids, at least 1 is needed, each below {text.vocab_size}"
        raise keys.refuse("ids", problem)
    content = tuple(
        _part(part, f"{where}: content[{index}]", files.directory)
        for index, part in enumerate(keys.sequence("content"))
    )
    keys.finish()
    return GoldenPrompt(name, content, token_ids)


def _part(raw: object, where: str, directory: Path) -> GoldenPart:
    if isinstance(raw, str):
        return raw
    keys = Keys(_object(raw, where), where)
    width, height = keys.integers("size", length=2, low=1)
    if max(width, height) > _LARGEST_SIDE:
        raise keys.refuse("size", f"is {width} x {height}, at most {_LARGEST_SIDE} each are expected")
    part: GoldenPart
    if keys.has("image"):
        name = keys.value("image")
        if not is_file_name(name):
            raise keys.refuse("image", f"is {show(name)}, the name of a file beside it is expected")
        part = GoldenImage(directory / name, (width, height))
    else:
        colours = keys.sequence("frames")
        if not 2 <= len(colours) <= _MOST_FRAMES or len(colours) % 2:
            raise keys.refuse(
                "frames", f"has {len(colours)} entries, an even number up to {_MOST_FRAMES} is due"
            )
        frames = tuple(_colour(one, f"{where}: frames[{index}]") for index, one in enumerate(colours))
        part = GoldenVideo(frames, (width, height), keys.integer("pixels", high=_LARGEST_SIDE**2))
    keys.finish()
    return part


def _colour(raw: object, where: str) -> tuple[int, int, int]:
    red, green, blue = Keys({"colour": raw}, where).integers("colour", length=3, low=0)
    if max(red, green, blue) > 255:
        raise ModelUnusable(
            f"{where} is {red}, {green}, {blue}", "red, green and blue are each at most 255", "mend the file"
        )
    return red, green, blue


def _object(raw: object, where: str) -> Mapping[str, object]:
    if isinstance(raw, dict):
        return raw
    raise ModelUnusable(f"{where} is {show(raw)}", "an object {...} is expected", "mend the file")
