"""Declares the options of `ernie-local chat` and says what they mean for the runtime."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.chat.tool_options import ToolOptions
from ernie_cli.form_options import FormOptions
from ernie_cli.options import (
    LARGEST_SEED,
    CommonOptions,
    ImageOptions,
    MemoryOptions,
    ThinkingOptions,
    file_option,
    fps_option,
    frames_option,
    model_argument,
    option,
    password_option,
    share_option,
    size_option,
)

if TYPE_CHECKING:
    from ernie_local.sampling import SamplingOptions

_LARGEST_FACTOR = 1000.0  # of scores; beyond it, tokens differ by nothing or by all


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ToolOptions, FormOptions, ThinkingOptions, MemoryOptions, ImageOptions, CommonOptions):
    """What was said on the command line; None means that the model or the runtime decides."""

    model: str = model_argument(default="nano")
    prompts: tuple[str, ...] = option(
        "-p",
        "--prompt",
        default=(),
        metavar="TEXT",
        help="The question; - reads it from stdin. Repeatable: one after the other in the same chat, about "
        "the same images.",
    )
    images: tuple[str, ...] = file_option(
        "--image",
        default=(),
        help="An image, pages of a PDF (invoice.pdf:1-3), a folder, or a pattern such as 'scans/*.png'; "
        "- reads stdin. Repeatable. Images stand before the text.",
    )
    videos: tuple[str, ...] = file_option(
        "--video",
        default=(),
        help="A video, moving GIF or WebP, or a part of one (clip.mp4@00:10-00:35). Repeatable. Videos stand "
        "between images and text. Needs pip install 'ernie-local[video]'.",
    )
    fps: float | None = fps_option(
        help="Frames of each second of a video that the model sees. Default: 2, or 16 to 180 in all."
    )
    frames: int | None = frames_option(help="So many frames of each video instead, evenly spread.")
    password: str | None = password_option()
    interactive: bool = option(
        "-i", "--interactive", default=False, help="Chat line by line even if stdin is no terminal."
    )
    system: str | None = option("-s", "--system", metavar="TEXT", help="How the model should behave.")
    temperature: float | None = option(
        "--temp",
        "--temperature",
        metavar="X",
        min=0.0,
        max=_LARGEST_FACTOR,
        help="0 always takes the most likely token. Default: the model's generation_config.json, else 0.",
    )
    top_p: float | None = share_option(
        help="Sample from the smallest set of tokens with this total probability."
    )
    top_k: int | None = option(
        metavar="N", min=0, max=2**31 - 1, help="Sample from the N most likely tokens; 0: from all."
    )
    min_p: float | None = share_option(
        help="Drop tokens that are less likely than X times the most likely one."
    )
    repetition_penalty: float | None = option(
        metavar="X", min=0.01, max=_LARGEST_FACTOR, help="Above 1, repeated tokens become less likely."
    )
    seed: int | None = option(metavar="N", min=0, max=LARGEST_SEED, help="Sample the same tokens every time.")
    hide_thinking: bool = option("--hide-thinking", default=False, help="Do not show the thoughts.")
    cache: Path | None = file_option(
        metavar="DIR",
        help="Keep in DIR what was computed for images and conversations, and look there before computing: "
        "a later run answers a question about the same image without reading it again. Private: the files "
        "tell what images showed and what was said; only you can read them. `ernie-local cache` clears DIR.",
    )
    cache_size: str | None = size_option(
        help="Most bytes of --cache; what was not used for longest goes first, and everything after 30 "
        "days. Default: 1GiB."
    )
    no_stream: bool = option("--no-stream", default=False, help="Print the answer when it is complete.")
    stats: bool = option("--stats", default=False, help="Show tokens, seconds and memory after each answer.")
    draw: Path | None = file_option(
        metavar="PNG",
        help="Draw the boxes that the answers name on a copy of the image, and save it in PNG; with several "
        "images, number 2 is in NAME-2.png. Of a video: the frames at the times that the answers name.",
    )
    save: Path | None = file_option(help="Write the chat to FILE at the end.")
    load: Path | None = file_option(help="Continue a chat written by --save.")
    trace: Path | None = file_option(
        help="Record in FILE which experts the tokens chose, for `bench --replay`."
    )

    def sampling(self, of_model: SamplingOptions) -> SamplingOptions:
        """How tokens are drawn: the options that were given over the model's own."""
        given = {field.name: getattr(self, field.name) for field in fields(of_model)}
        return replace(of_model, **{name: value for name, value in given.items() if value is not None})
