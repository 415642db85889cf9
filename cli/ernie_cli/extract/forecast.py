"""Says what a run of `extract` would take: documents, tokens and hours. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from ernie_cli.extract.options import ExtractOptions
from ernie_cli.extract.result import ForecastObject
from ernie_cli.status import counted, duration
from ernie_cli.vram import report as reports
from ernie_cli.vram.command import VramOptions
from ernie_local.defaults import context_tokens
from ernie_local.errors import DoesNotFit, ErnieLocalError
from ernie_local.extraction.boxes import BOX_KEY
from ernie_local.extraction.documents import Document
from ernie_local.extraction.questions import questions_of
from ernie_local.extraction.reader import DEFAULT_PROMPT, ReadingOptions
from ernie_local.extraction.schema_sample import sample_of
from ernie_local.media.open_video import measure_given_video
from ernie_local.media.video_stamp import check_font
from ernie_local.model_files import ModelFiles
from ernie_local.planner.speed import Speed
from ernie_local.session import ImagePart, open_chat_images
from ernie_local.session.generation import AnswerOptions, find_limits
from ernie_local.session.writer import ChatWriter
from ernie_local.structured import AnswerForm

# Of a short value, with the end of its answer; a question's words with the tags around it; the four sides of
# a box, which the example of an answer has one of.
_TOKENS_OF_VALUE, _TOKENS_OF_TAGS, _TOKENS_OF_BOX = 8, 12, 16
_TOKENS_OF_THOUGHT = 256  # where nothing limits it


@dataclass(frozen=True, slots=True)
class _Answers:
    """Of one document. text: tokens of questions without images. answer, thought: tokens that are written.
    longest: the thoughts at most.
    """

    num: int
    text: int
    answer: int
    thought: int
    longest: int


def forecast(
    options: ExtractOptions, reading: ReadingOptions, files: ModelFiles, documents: Iterable[Document]
) -> ForecastObject:
    """Opens each document, to know its tokens; the frames of videos are counted and not decoded.

    Seconds are those of reading prompts and writing answers at the speed that `vram` predicts, one document
    after the other; looking at images is not in them.
    """
    found = ForecastObject(0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, is_measured=False)
    of_images = _answers(options, reading, files)
    of_videos = _answers(options, replace(reading, boxes=False), files)
    computed = repeated = longest = 0
    for document in documents:
        found.documents += 1
        try:
            media_tokens = _media_tokens(document, options, reading, files, found)
        except ErnieLocalError:
            found.unreadable += 1
            continue
        each = of_videos if document.is_video else of_images
        found.prompt_tokens += media_tokens * each.num + each.text
        computed += media_tokens + each.text  # of images and videos for the first question alone
        repeated += each.text * reading.retry
        found.completion_tokens += each.answer + each.thought
        longest += (each.answer + each.longest) * (2 if reading.retry else 1)
        found.thought_tokens += each.thought
    speed = _speed(options)
    found.is_measured = speed.is_measured
    if speed.prefill is not None:
        likely = found.completion_tokens
        found.seconds_low, found.seconds_likely, found.seconds_high = (
            round(read / prefill + written / decode, 1)
            for read, prefill, written, decode in (
                (computed, speed.prefill.high, likely, speed.decode.high),
                (computed, speed.prefill.best, likely, speed.decode.best),
                (computed + repeated, speed.prefill.low, longest, speed.decode.low),
            )
        )
    return found


def _media_tokens(
    document: Document,
    options: ExtractOptions,
    reading: ReadingOptions,
    files: ModelFiles,
    found: ForecastObject,
) -> int:
    """Tokens of the images of a document or of its video, which are counted in `found`."""
    if document.is_video:
        path = document.file.path
        check_font(str(path))
        report = measure_given_video(path, files.video_processor, reading.sampling)
        room = context_tokens(options.context_tokens(), files.config.text.max_position_embeddings)
        if report.tokens >= room:
            raise DoesNotFit(
                f"{path}: {report.tokens} tokens, the context has {room}",
                f"the model sees {len(report.frames)} frames of it",
                "--frames, or a larger --ctx-size",
            )
        found.videos += 1
        found.frames += len(report.frames)
        return report.tokens
    parts = [ImagePart(image, reading.detail, trim=reading.trim) for image in document.open(options.password)]
    images = open_chat_images(parts, files.image_processor, options.context_tokens())
    found.images += len(images)
    return sum(image.num_tokens for image in images)


def forecast_lines(found: ForecastObject, done_before: int) -> Iterator[str]:
    """What people are told of it."""
    before = f", besides {done_before} that are done" if done_before else ""
    unreadable = f", {found.unreadable} of them unreadable" if found.unreadable else ""
    videos = f", {counted(found.videos, 'video')} of {found.frames} frames in all" if found.videos else ""
    images = f"{counted(found.images, 'image')}{videos}"
    yield f"{counted(found.documents, 'document')}{unreadable}, {images}{before}"
    thoughts = f", {found.thought_tokens:,} of them of thoughts" if found.thought_tokens else ""
    yield f"{found.prompt_tokens:,} tokens of prompts, about {found.completion_tokens:,} of answers{thoughts}"
    by = "as bench measured this machine" if found.is_measured else "at assumed speeds; bench measures them"
    yield (
        f"about {duration(found.seconds_likely)} ({duration(found.seconds_low)} to "
        f"{duration(found.seconds_high)}) one document after the other, looking at images not counted, {by}"
    )


def _answers(options: ExtractOptions, reading: ReadingOptions, files: ModelFiles) -> _Answers:
    texts = list(_question_texts(reading))
    text_tokens = sum(len(files.tokenizer.encode(text)) + _TOKENS_OF_TAGS for text in texts)
    wanted = reading.thinking
    default = ChatWriter(files, variant=options.variant).thinks_by_default if wanted is None else wanted
    thinks = default is not False  # also where the model decides
    limits = find_limits(
        AnswerOptions(thinks, reading.thinking_budget, reading.max_tokens),
        options.context_tokens() or files.config.text.max_position_embeddings,
        close_length=0,
    )
    longest = limits.thinking_tokens * len(texts) if thinks else 0
    thought = min(longest, _TOKENS_OF_THOUGHT * len(texts))
    return _Answers(len(texts), text_tokens, _answer_tokens(reading, files), thought, longest)


def _question_texts(reading: ReadingOptions) -> Iterator[str]:
    prompt = reading.prompt or ""
    if reading.ask == "each":
        for question in questions_of(reading.form):
            yield f"{prompt} {question.text} {question.form.instruction}"
    else:
        yield f"{prompt or DEFAULT_PROMPT} {reading.answer_form.instruction}"


def _answer_tokens(reading: ReadingOptions, files: ModelFiles) -> int:
    """Of all answers about a document, with one item in each list."""
    forms = [reading.answer_form]
    if reading.ask == "each":
        forms = [question.form for question in questions_of(reading.form)]
    return sum(_tokens_of(form, files) for form in forms)


def _tokens_of(form: AnswerForm, files: ModelFiles) -> int:
    if form.schema is None:
        return _TOKENS_OF_VALUE
    example = json.dumps(sample_of(form.schema))
    num_boxes = example.count(json.dumps(BOX_KEY))
    return len(files.tokenizer.encode(example)) + _TOKENS_OF_VALUE + num_boxes * _TOKENS_OF_BOX


def _speed(options: ExtractOptions) -> Speed:
    """Of the model on this machine, as `vram` predicts it."""
    same = ("model", "context_size", "dtype", "kv_dtype", "ram", "reserve", "vram")
    wanted = VramOptions(**{name: getattr(options, name) for name in same})
    model = reports.find_model(wanted)
    chats = reports.converse(model, wanted)
    report = reports.report_on(model, chats, reports.find_target(wanted, reports.ram_budget(wanted)))
    on_gpu = report.gpu_speed if options.device != "cpu" else None
    return on_gpu or report.cpu_speed
