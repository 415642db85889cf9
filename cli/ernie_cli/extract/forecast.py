"""Says what a run of `extract` would take: documents, tokens and hours. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ernie_cli.extract.options import ExtractOptions
from ernie_cli.extract.result import ForecastObject
from ernie_cli.status import counted, duration
from ernie_cli.vram import report as reports
from ernie_cli.vram.command import VramOptions
from ernie_local.errors import ErnieLocalError
from ernie_local.extraction.boxes import BOX_KEY
from ernie_local.extraction.documents import Document
from ernie_local.extraction.questions import questions_of
from ernie_local.extraction.reader import DEFAULT_PROMPT, ReadingOptions
from ernie_local.extraction.schema_sample import sample_of
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
    """Opens each document, to know its tokens.

    Seconds are those of reading prompts and writing answers at the speed that `vram` predicts, one document
    after the other; looking at images is not in them.
    """
    found = ForecastObject(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, is_measured=False)
    each = _answers(options, reading, files)
    computed = 0  # the images of a document are computed for its first question alone
    num_asked = 0
    for document in documents:
        found.documents += 1
        try:
            parts = [
                ImagePart(image, reading.detail, trim=reading.trim)
                for image in document.open(options.password)
            ]
            images = open_chat_images(parts, files.image_processor, options.context_tokens())
        except ErnieLocalError:
            found.unreadable += 1
            continue
        num_asked += 1
        image_tokens = sum(image.num_tokens for image in images)
        found.images += len(images)
        found.prompt_tokens += image_tokens * each.num + each.text
        computed += image_tokens + each.text
        found.completion_tokens += each.answer + each.thought
        found.thought_tokens += each.thought
    speed = _speed(options)
    found.is_measured = speed.is_measured
    if speed.prefill is not None:
        likely = found.completion_tokens
        most = num_asked * (each.answer + each.longest) * (2 if reading.retry else 1)
        most_computed = computed + num_asked * each.text * reading.retry
        found.seconds_low, found.seconds_likely, found.seconds_high = (
            round(read / prefill + written / decode, 1)
            for read, prefill, written, decode in (
                (computed, speed.prefill.high, likely, speed.decode.high),
                (computed, speed.prefill.best, likely, speed.decode.best),
                (most_computed, speed.prefill.low, most, speed.decode.low),
            )
        )
    return found


def forecast_lines(found: ForecastObject, done_before: int) -> Iterator[str]:
    """What people are told of it."""
    before = f", besides {done_before} that are done" if done_before else ""
    unreadable = f", {found.unreadable} of them unreadable" if found.unreadable else ""
    yield f"{counted(found.documents, 'document')}{unreadable}, {counted(found.images, 'image')}{before}"
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
