"""Opens the chat that the options describe, asks a question and shows the answer, and tells how it went.

Imports torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from signal import SIGINT
from typing import TypedDict

from ernie_cli.chat.options import ChatOptions
from ernie_cli.chat.tool_calls import show_step, step_lines
from ernie_cli.console import Console
from ernie_cli.failures import spell_options
from ernie_cli.options import MemoryOptions
from ernie_cli.settings import stored_profile
from ernie_cli.signals import Terminated, raising_terminated, stop_requests
from ernie_local import defaults, session
from ernie_local.errors import ErnieLocalError, Stopped
from ernie_local.escapes import printable_line
from ernie_local.experts.options import PagingStats
from ernie_local.kernels.native import native_notice
from ernie_local.loading import LoadedModel
from ernie_local.media.open_image import OpenedImage
from ernie_local.model_files import ModelFiles
from ernie_local.progress import OnProgress
from ernie_local.replay.trace import write_trace
from ernie_local.sampling import SamplingOptions, model_sampling
from ernie_local.session.tools import MOST_ROUNDS
from ernie_local.sizes import format_bytes

_PARTS = {
    "weights": "loading weights",
    "images": "looking at images",
    "tokens": "reading the prompt",
    "model": "hashing the model, once for this cache",
}


def measure_images(
    opened: Sequence[OpenedImage], options: ChatOptions, files: ModelFiles
) -> list[session.ChatImage]:
    """The images as the model will see them, trimmed and shrunk as the options say."""
    parts = [session.ImagePart(one, options.detail, trim=options.trim) for one in opened]
    model_limit = files.config.text.max_position_embeddings
    context_size = defaults.context_tokens(options.context_tokens(), model_limit)
    return session.open_chat_images(parts, files.image_processor, context_size)


def load_for_chat(
    options: MemoryOptions, files: ModelFiles, console: Console, images: Sequence[session.ChatMedia] = ()
) -> LoadedModel:
    """Load the weights as the options say; what the runtime warns of is told on the console.

    images: those of the first prompt.
    """
    load_options = options.load_options()
    # The profile says which rule for misses is fastest, and a rule matters only with two memories.
    profile = None if options.vram is None else stored_profile()
    with console.telling_warnings(), console.working("loading the model"):
        model = session.open_model(files, load_options, profile, _progress_on(console), images)
    console.status.beside = partial(_reading_text, weakref.ref(model))
    for note in session.opening_notes(model, load_options):
        console.note(spell_options(note))
    return model


def _reading_text(loaded: weakref.ref[LoadedModel]) -> str:
    """How much of the layers has been read while the model computes; "" when all have been."""
    model = loaded()
    share = 1.0 if model is None else model.resident_share
    return "" if share == 1 else f"{share:.0%} of the layers read"


def _progress_on(console: Console) -> OnProgress:
    return lambda unit, done, work: console.status.show(_PARTS[unit], done, work)


def open_chat(
    options: ChatOptions,
    files: ModelFiles,
    console: Console,
    images: Sequence[session.ChatMedia],
    tools: Sequence[session.ChatTool] = (),
) -> session.Chat:
    """Load the model and begin a chat, or continue the one of --load. images: of the first question."""
    # Built before the weights are read: they refuse values that mean nothing, and broken files.
    sampling = chat_sampling(options, files)
    saved = None if options.load is None else session.read_saved_chat(options.load, files, options.password)
    saved = None if saved is None else saved.with_tools(tools)
    settings = chat_settings(options)
    before = [] if saved is None else saved.media
    model = load_for_chat(options, files, console, [*before, *images])
    notice = native_notice()
    if notice is not None:
        console.warn(notice)
    if options.trace is not None:
        model.record_trace()
    if saved is not None:
        return session.Chat.resume(saved, model, sampling, **settings)
    return session.Chat(model, options.system, sampling, tools=tools, **settings)


class ChatSettings(TypedDict):
    """What new, resumed and loaded chats are given alike."""

    variant: str | None
    max_rounds: int


def chat_settings(options: ChatOptions) -> ChatSettings:
    """As the options say."""
    return {"variant": options.variant, "max_rounds": options.max_rounds or MOST_ROUNDS}


def chat_sampling(options: ChatOptions, files: ModelFiles) -> SamplingOptions:
    """How tokens are drawn: flags over the model's own generation_config.json."""
    return options.sampling(model_sampling(files.generation_config))


@contextmanager
def trace_written(path: Path | None, chat: session.Chat, console: Console) -> Iterator[None]:
    """When the block ends, however it does, the trace is written to `path`."""
    try:
        yield
    finally:
        if path is not None:
            recorder = chat.model.recorder
            assert recorder is not None
            trace = recorder.trace()
            write_trace(path, trace)
            console.note(
                f"trace of {trace.prompt_tokens} prompt tokens and {trace.decoded_tokens} decoded ones "
                f"saved as {path}"
            )


@contextmanager
def saved_at_the_end(path: Path | None, chat: Callable[[], session.Chat]) -> Iterator[None]:
    """When the block ends, also by SIGTERM or with its terminal, the chat is written to `path`.

    After an error that is, too, what was said before it.
    """
    if path is None:
        yield
        return
    try:
        with raising_terminated():
            yield
    except ErnieLocalError:
        if chat().history:
            chat().save(path)
        raise
    except Terminated as error:
        chat().save(path)
        raise Stopped(
            f"stopped by {error}", f"the chat until now is saved as {path}", f"--load {path} continues it"
        ) from error
    chat().save(path)


def ask(
    chat: session.Chat,
    question: str | None,
    images: Sequence[session.ChatMedia],
    options: ChatOptions,
    console: Console,
) -> session.Answer:
    """Ask, show the answer, and return it. Ctrl-C ends the answer early (`finish_reason` "interrupted").

    question: None is that of the last turn again, with its own images. Raises what `Chat.ask` raises,
    NoAnswer included, with all that was said shown.
    """
    held_back: list[str] = []
    chat.on_progress = _progress_on(console)
    chat.on_step = partial(show_step, options, console)
    videos = [one for one in images if isinstance(one, session.ChatVideo)]
    pictures = [one for one in images if isinstance(one, session.ChatImage)]
    pieces = chat.retry if question is None else partial(chat.ask, question, images=pictures, videos=videos)
    try:
        with (
            stop_requests(chat.stop, SIGINT),
            console.telling_warnings(),
            console.working("reading the question"),
        ):
            for piece in pieces(
                thinking=options.thinking(),
                thinking_budget=options.think_budget_count(),
                max_tokens=options.max_tokens_count(),
                schema=options.form,
            ):
                if options.as_json:
                    continue
                is_thought = piece.kind == "reasoning"
                if options.hide_thinking if is_thought else options.no_stream:
                    console.status.show("thinking" if is_thought else "writing the answer")
                    held_back += [] if is_thought else [piece.text]
                    continue
                console.status.hide()
                if is_thought:
                    console.thought(piece.text)
                else:
                    console.answer(piece.text)
    finally:
        console.answer("".join(held_back))
        console.end_line()
    assert chat.last is not None
    if options.cache is not None and (line := reuse_line(chat.last)) is not None:
        console.note(line)
    for call in chat.last.tool_calls if chat.last.finish_reason == "stop" else ():
        console.warn(f"the model calls {printable_line(call.name)}, which was not run")
    return chat.last


def draw_answers(
    path: Path,
    answers: Sequence[session.Answer],
    chat: session.Chat,
    console: Console,
) -> list[str]:
    """Draw boxes on copies of the images of the chat, and moments of its videos on a sheet; tell what was
    drawn where. Returns the files written."""
    boxes = [box for answer in answers for box in answer.boxes]
    times = [time for answer in answers for time in answer.times]
    images, videos = chat.images, chat.videos
    notes = chat.last.box_notes if chat.last is not None else ()
    for note in notes:
        console.warn(printable_line(note))
    for number, box in enumerate(boxes, start=1):
        label = "" if box.label is None else f" {printable_line(box.label)}"
        if box.original is None:
            console.warn(f"box {number}{label}: the answer does not say in which image it is")
        else:
            place = ", ".join(f"{side:.0f}" for side in box.original)
            console.note(f"box {number}{label}: {box.name} [{place}]")
    for number, time in enumerate(times, start=1):
        console.note(f"time {number}: {printable_line(time.name or 'a video')} {time.seconds:g} s")
    written = session.write_drawings(path, boxes, images)
    written += session.write_sheet(session.sheet_path(path, has_images=bool(images)), times, videos)
    for drawing in written:
        console.note(f"drawn: {drawing}")
    if not written:
        of_videos = f" and no time in {len(videos)} videos" if videos else ""
        console.warn(f"nothing is drawn: the answer names no place in {len(images)} images{of_videos}")
    return [str(drawing) for drawing in written]


def reuse_line(answer: session.Answer) -> str | None:
    """What an answer took from earlier runs and chats in one line; None where that was nothing."""
    usage = answer.usage
    parts = []
    if usage.restored_tokens:
        parts.append(f"{usage.restored_tokens} of {usage.prompt_tokens} tokens of the prompt")
    if usage.reused_images:
        parts.append(f"features of {usage.reused_images} images")
    return f"from the cache: {', '.join(parts)}" if parts else None


def stats_line(answer: session.Answer, load_seconds: float) -> str:
    """Tokens, seconds and memory of an answer in one line, and one for each memory of paged experts."""
    usage, timings = answer.usage, answer.timings
    images = f" ({usage.image_tokens} of images)" if usage.image_tokens else ""
    images += f" ({usage.video_tokens} of videos)" if usage.video_tokens else ""
    thoughts = f" ({usage.reasoning_tokens} of thoughts)" if usage.reasoning_tokens else ""
    new_tokens, seconds = usage.prompt_tokens - usage.cached_tokens, timings.image + timings.prefill
    cached = f", {usage.cached_tokens} cached" if usage.cached_tokens else ""
    parts = [
        f"prompt {usage.prompt_tokens} tokens{images}{cached} in {seconds:.2f} s"
        + _rate(new_tokens, seconds),
        f"answer {usage.completion_tokens} tokens{thoughts} in {timings.decode:.2f} s"
        + _rate(usage.completion_tokens, timings.decode),
        f"load {load_seconds:.2f} s",
    ]
    if answer.peak_memory_bytes is not None:
        parts.append(f"peak memory {format_bytes(answer.peak_memory_bytes)}")
    line = "\n".join(["; ".join(parts), *step_lines(answer)])
    return line if answer.paging is None else f"{line}\n{_paging_line(answer.paging)}"


def _rate(num_tokens: int, seconds: float) -> str:
    return f" ({num_tokens / seconds:.1f}/s)" if seconds > 0 else ""


def _paging_line(paging: PagingStats) -> str:
    """Where an answer's experts came from: hit rates, bytes read a token, seconds waited."""
    text = paging.banks["text"]
    rate = "" if text.decode_hit_rate is None else f", {text.decode_hit_rate:.0%} of the answer's in memory"
    prompt = sum(bank.prompt_hits for bank in paging.banks.values())
    wanted = prompt + sum(bank.prompt_misses for bank in paging.banks.values())
    line = (
        f"experts: {prompt} of the prompt's {wanted} pages in memory{rate}; "
        f"{_bytes_and_waits(paging, 'read')}"
    )
    if paging.small_pages_used:
        line += f"; {paging.small_pages_used} small pages used"
    if paging.gpu is not None:
        text = paging.gpu.banks["text"]
        rate = "" if text.decode_hit_rate is None else f"{text.decode_hit_rate:.0%} of the answer's there; "
        line += f"\nGPU: {rate}{_bytes_and_waits(paging.gpu, 'copied to it')}"
        if paging.gpu.given_up_bytes:
            line += f"; {format_bytes(paging.gpu.given_up_bytes)} given up to other programs"
    return line


def _bytes_and_waits(paging: PagingStats, verb: str) -> str:
    num_bytes = sum(bank.bytes_read for bank in paging.banks.values())
    each = paging.decode_bytes_read / paging.decoded_tokens if paging.decoded_tokens else 0
    return (
        f"{format_bytes(num_bytes)} {verb}, {format_bytes(round(each))} a token of the answer; "
        f"waited {paging.prompt_wait_seconds:.2f} s in the prompt, {paging.decode_wait_seconds:.2f} s in the "
        "answer"
    )


def cut_off_line(answer: session.Answer) -> str:
    """What to say of an answer that a limit has ended."""
    num_tokens = answer.usage.completion_tokens
    return f"the answer was cut off after {num_tokens} tokens: --max-tokens or --ctx-size is the limit"
