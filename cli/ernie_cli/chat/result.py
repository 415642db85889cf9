"""The object of `ernie-local chat --json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Optional

from ernie_cli.json_object import fill_result

if TYPE_CHECKING:
    from ernie_local.media.video_size import VideoReport
    from ernie_local.session import Answer, ImageReport, ToolStep


@dataclass
class UsageObject:
    """Tokens of this question."""

    prompt_tokens: int | None = None
    """Of the whole prompt: system text, earlier turns of `--load`, images, the question."""
    image_tokens: int | None = None  #: Those of them that stand for images.
    video_tokens: int | None = None  #: Those of them that stand for videos.
    cached_tokens: int | None = None
    """Those of them that were computed earlier and not again: for an earlier turn, or an earlier run with
    `--cache`; 0 for the first question without it."""
    restored_tokens: int | None = (
        None  #: Those of `cached_tokens` that were read from the folder of `--cache`.
    )
    reused_images: int | None = None
    """Images that were not looked at again, although their tokens were computed: the vision tower's features
    of them were in memory or in the folder of `--cache`."""
    completion_tokens: int | None = None  #: That were generated, thoughts included.
    reasoning_tokens: int | None = None  #: Those of them that are thoughts.


@dataclass
class TimingsObject:
    """Seconds."""

    load: float | None = None  #: Loading the model, until it can compute.
    image: float | None = None  #: Preparing the images.
    prefill: float | None = None  #: The prompt, vision tower included.
    decode: float | None = None  #: The answer.
    total: float | None = None  #: Of the question, without `load`.


@dataclass
class PeakMemoryObject:
    """Memory of the process."""

    peak_rss_bytes: int | None = None
    """The most that was resident; null without an answer, and where the system does not tell."""


@dataclass
class BankPagingObject:
    """Pages of one bank, counted once for each layer and forward pass."""

    decode_hits: int
    decode_misses: int
    prompt_hits: int
    prompt_misses: int
    bytes_read: int


@dataclass
class PagingObject:
    """What this answer's experts cost. Of a GPU, `bytes_read` is what was copied to it; its misses are pages
    that were asked of RAM or of the disk."""

    decoded_tokens: int
    decode_bytes_read: int
    decode_wait_seconds: float
    prompt_tokens: int
    prompt_wait_seconds: float
    unused_pages_read: int
    small_pages_used: int  #: With `--small-below`.
    given_up_bytes: int  #: Of a GPU, since other programs took its memory while the model ran.
    kept_workspaces: int  #: Of a GPU: prompts whose workspace did not come back for experts of the answer.
    banks: dict[str, BankPagingObject]  #: By bank: `text` and `vision`.
    gpu: Optional[PagingObject]  # noqa: UP045  a class cannot be joined with None in its own body
    """With a GPU, the same of its memory; else null."""


@dataclass
class ImageObject:
    """An image of this question. Sizes are [width, height] in pixels."""

    name: str
    size: Annotated[list[int], "original_size"]  #: As it was.
    resized: Annotated[list[int], "resized_size"]  #: As the model sees it.
    tokens: int  #: In the prompt.
    scale: float
    """Share of the side length that is left of what is read: the root of the ratio of the two areas."""
    crop: list[int] | None
    """[left, top, right, bottom] of the part that `--trim` left, in pixels of `size`; null for all of it."""
    max_tokens: int | None  #: The bound that `--image-tokens` or `--detail` has set; null without one.


@dataclass
class BoxObject:
    """A place in an image that the answer names."""

    label: str | None  #: What the answer says of it.
    image: int | None
    """Number of the image, from 1 over the whole chat; null where there are several and the answer does not
    say which."""
    name: str | None  #: Of that image.
    box: Annotated[list[float] | None, "original"]
    """[left, top, right, bottom] in pixels of the file as it is stored, before a turn by its EXIF data; of a
    page of a PDF in points; null as `image`."""
    thousandths: list[float]  #: The same as the answer has it, of what the model sees.


@dataclass
class StepImageObject:
    """An image that a tool showed to the model. Sizes are [width, height] in pixels."""

    number: int  #: In the chat, from 1; `--steps` calls its file picture-N.png.
    name: str
    box: list[float] | None
    """[left, top, right, bottom] of the part that was zoomed into, in pixels of the file as it is stored,
    before a turn by its EXIF data; of a page of a PDF in points; null for other images."""
    size: Annotated[list[int], "read_size"]  #: Before it was resized.
    resized: Annotated[list[int], "resized_size"]  #: As the model sees it.
    tokens: int


@dataclass
class StepObject:
    """A call of a tool on the way to the answer."""

    round: int  #: From 1; a round may have several calls.
    name: Annotated[str, "call.name"]
    arguments: Annotated[dict[str, object], "call.arguments"]
    text: Annotated[str, "result.text"]  #: What the model reads, without images.
    is_error: bool
    seconds: float  #: Until the result was there, with the time in which a person was asked.
    images: list[StepImageObject]
    paging: PagingObject | None
    """What the experts of the following round cost, in which the model reads the result; null where all are
    in memory."""

    @classmethod
    def of(cls, step: ToolStep) -> StepObject:
        """The call as it was run."""
        images = [
            fill_result(
                StepImageObject,
                image.report,
                number=number,
                box=None if image.origin is None else list(image.origin.box),
            )
            for number, image in enumerate(step.result.images, start=step.first_image or 1)
        ]
        return fill_result(cls, step, images=images, seconds=round(step.seconds, 4))


@dataclass
class VideoObject:
    """A video of this question. Sizes are [width, height] in pixels."""

    name: str  #: With the part that is seen.
    size: Annotated[list[int], "original_size"]  #: As it was.
    resized: Annotated[list[int], "resized_size"]  #: Each frame as the model sees it.
    seconds: Annotated[float, "duration"]  #: Of the whole file, at its average frame rate.
    fps: float  #: Frames a second of the file.
    num_frames: int  #: Of the file.
    frames: list[int]  #: Numbers of those that the model sees, from 0.
    times: list[float]  #: The seconds that are written on them.
    tokens: int  #: In the prompt.


@dataclass
class TimeObject:
    """A moment of a video that the answer names."""

    seconds: float  #: From the start of the file.
    text: str  #: The words for it.
    video: int | None
    """Number of the video, from 1 over the whole chat; null where there are several and it is not said."""
    name: str | None  #: Of that video.


@dataclass
class EarlierAnswerObject:
    """An answer to a question before the last one."""

    text: str
    reasoning: str | None
    finish_reason: str | None
    value: object
    confidence: dict[str, float]
    usage: UsageObject
    timings: TimingsObject
    boxes: list[BoxObject]
    steps: list[StepObject]
    times: list[TimeObject]


@dataclass
class ChatResult:
    """One object, whatever the end of the run: an answer, a wrong option, an unreadable image, Ctrl-C."""

    model: str | None = None  #: MODEL as given; null when the command line could not be read.
    text: str | None = None  #: The answer, without thoughts; with exit codes 7 and 130 what there was of it.
    reasoning: str | None = None  #: The thoughts before the answer; null when there were none.
    finish_reason: Literal["stop", "length", "interrupted", "tool_calls"] | None = None
    """`stop`: the model ended its turn; `length`: `--max-tokens` or the context ended it; `interrupted`:
    Ctrl-C."""
    value: object = None
    """What `text` means with `--schema` or `--fields`: its JSON; with `--regex` or `--choice` the text. Null
    without them, and where the answer was cut off."""
    confidence: dict[str, float] = field(default_factory=dict)
    """How sure the model was of each part of `value`, from 0 to 1: the product of the probabilities of its
    tokens among those that were allowed. By path, as in `lines[0].price`; "" is the whole."""
    usage: UsageObject = field(default_factory=UsageObject)
    timings: TimingsObject = field(default_factory=TimingsObject)
    memory: PeakMemoryObject = field(default_factory=PeakMemoryObject)
    paging: PagingObject | None = None  #: Null where all experts are in memory.
    images: list[ImageObject] = field(default_factory=list)  #: In order; a PDF gives one for each page.
    boxes: list[BoxObject] = field(default_factory=list)  #: In the order of the answer.
    box_notes: list[str] = field(default_factory=list)
    """What of the answer looks like a box and is none, or was cut at the edge of the image."""
    steps: list[StepObject] = field(default_factory=list)
    """The calls of tools that were run on the way to the answer, in order: `--zoom`, `--tool`."""
    videos: list[VideoObject] = field(default_factory=list)  #: In order.
    times: list[TimeObject] = field(default_factory=list)
    """Moments of videos, in the order of the answer."""
    drawings: list[str] = field(default_factory=list)  #: The files that `--draw` wrote.
    earlier: list[EarlierAnswerObject] = field(default_factory=list)
    """With several `-p`: the answers before that of `text`, in order."""

    def begin_question(self) -> None:
        """Put the answer that is there, if any, with the earlier ones."""
        if self.text is None:
            return
        self.earlier.append(fill_result(EarlierAnswerObject, self))
        self.text = self.reasoning = self.finish_reason = self.paging = self.value = None
        self.confidence = {}
        self.usage, self.timings, self.memory = UsageObject(), TimingsObject(), PeakMemoryObject()
        self.boxes, self.box_notes, self.times, self.steps = [], [], [], []

    def set_images(self, reports: Sequence[ImageReport]) -> None:
        """Fill in what the model will see of the images."""
        self.images = [fill_result(ImageObject, report, scale=round(report.scale, 4)) for report in reports]

    def set_videos(self, reports: Sequence[VideoReport]) -> None:
        """Fill in what the model will see of the videos."""
        self.videos = [fill_result(VideoObject, report) for report in reports]

    def set_answer(self, answer: Answer, load_seconds: float) -> None:
        """Fill in the answer; `load_seconds` is the time the model took to load."""
        timings = answer.timings
        self.text, self.reasoning = answer.text, answer.reasoning or None
        self.finish_reason = answer.finish_reason
        self.value = answer.value
        self.confidence = {path: round(share, 4) for path, share in answer.confidence.items()}
        self.usage = fill_result(UsageObject, answer.usage)
        self.timings = TimingsObject(
            *(
                round(seconds, 4)
                for seconds in (load_seconds, timings.image, timings.prefill, timings.decode, timings.total)
            )
        )
        self.boxes = [fill_result(BoxObject, box) for box in answer.boxes]
        self.box_notes = list(answer.box_notes)
        self.steps = [StepObject.of(step) for step in answer.steps]
        self.times = [fill_result(TimeObject, time) for time in answer.times]
        self.memory = PeakMemoryObject(answer.peak_memory_bytes)
        self.paging = None if answer.paging is None else fill_result(PagingObject, answer.paging)
