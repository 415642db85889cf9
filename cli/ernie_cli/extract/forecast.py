"""Says what a run of `extract` would take: documents, tokens and hours. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from ernie_cli.extract.options import ExtractOptions
from ernie_cli.extract.result import ForecastObject
from ernie_cli.status import duration
from ernie_cli.vram import report as reports
from ernie_cli.vram.command import VramOptions
from ernie_local.errors import ErnieLocalError
from ernie_local.extraction.documents import Document
from ernie_local.extraction.questions import object_schema, questions_of
from ernie_local.extraction.reader import DEFAULT_PROMPT, ReadingOptions
from ernie_local.extraction.schema_sample import sample_of
from ernie_local.model_files import ModelFiles
from ernie_local.planner.speed import Speed
from ernie_local.session import ImagePart, open_chat_images

# Of a short value, with the end of its answer; a question's words with the tags around it.
_TOKENS_OF_VALUE, _TOKENS_OF_TAGS = 8, 12


def forecast(
    options: ExtractOptions, reading: ReadingOptions, files: ModelFiles, documents: Iterable[Document]
) -> ForecastObject:
    """Opens each document, to know its tokens.

    Seconds are those of reading prompts and writing answers at the speed that `vram` predicts; looking at
    images is not in them.
    """
    found = ForecastObject(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, is_measured=False)
    texts = list(_question_texts(reading))
    text_tokens = [len(files.tokenizer.encode(text)) + _TOKENS_OF_TAGS for text in texts]
    computed = 0  # the images of a document are computed for its first question alone
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
        image_tokens = sum(image.num_tokens for image in images)
        found.images += len(images)
        found.prompt_tokens += image_tokens * len(texts) + sum(text_tokens)
        computed += image_tokens + sum(text_tokens)
        found.completion_tokens += _answer_tokens(reading, files)
    speed = _speed(options)
    found.is_measured = speed.is_measured
    if speed.prefill is not None:
        found.seconds_low, found.seconds_likely, found.seconds_high = (
            round(computed / prefill + found.completion_tokens / decode, 1)
            for prefill, decode in (
                (speed.prefill.high, speed.decode.high),
                (speed.prefill.best, speed.decode.best),
                (speed.prefill.low, speed.decode.low),
            )
        )
    return found


def forecast_lines(found: ForecastObject) -> Iterator[str]:
    """What people are told of it."""
    unreadable = f", {found.unreadable} of them unreadable" if found.unreadable else ""
    yield f"{found.documents} documents{unreadable}, {found.images} images"
    yield f"{found.prompt_tokens:,} tokens of prompts, about {found.completion_tokens:,} of answers"
    by = "as bench measured this machine" if found.is_measured else "at assumed speeds; bench measures them"
    yield (
        f"about {duration(found.seconds_likely)} ({duration(found.seconds_low)} to "
        f"{duration(found.seconds_high)}), looking at images not counted, {by}"
    )


def _question_texts(reading: ReadingOptions) -> Iterator[str]:
    prompt = reading.prompt or ""
    if reading.ask == "each":
        for question in questions_of(reading.form):
            yield f"{prompt} {question.text} {question.form.instruction}"
    else:
        yield f"{prompt or DEFAULT_PROMPT} {reading.form.instruction}"


def _answer_tokens(reading: ReadingOptions, files: ModelFiles) -> int:
    """Of an answer with one item in each list."""
    if reading.ask == "each":
        return _TOKENS_OF_VALUE * len(questions_of(reading.form))
    example = json.dumps(sample_of(object_schema(reading.form)))
    return len(files.tokenizer.encode(example)) + _TOKENS_OF_VALUE


def _speed(options: ExtractOptions) -> Speed:
    """Of the model on this machine, as `vram` predicts it."""
    same = ("model", "context_size", "dtype", "kv_dtype", "ram", "reserve", "vram")
    wanted = VramOptions(**{name: getattr(options, name) for name in same})
    model = reports.find_model(wanted)
    chats = reports.converse(model, wanted)
    report = reports.report_on(model, chats, reports.find_target(wanted, reports.ram_budget(wanted)))
    on_gpu = report.gpu_speed if options.device != "cpu" else None
    return on_gpu or report.cpu_speed
