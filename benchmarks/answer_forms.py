"""Measures what a form of the answer costs: the mask of each token, and the steps that forced tokens save.

    python benchmarks/answer_forms.py --model nano --tokenizer tokenizer.model

The table is of random logits over the vocabulary of --tokenizer (by default the model's). Then the model is
asked, with forced tokens in one step and one by one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import torch

import ernie_local
from ernie_local.sampling import Sampler, SamplingOptions
from ernie_local.structured import AnswerForm
from ernie_local.structured.guide import AnswerGuide
from ernie_local.structured.tokens import vocabulary_of
from ernie_local.text.tokenizer import ErnieTokenizer

TEXT = {"type": "string", "maxLength": 8}
MONEY = {"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.01}
FORMS = {
    "fields": AnswerForm.from_fields("vendor, date: date, total: number, lines[]: {item, count: integer}"),
    "enum of 5,000": AnswerForm.of({"type": "array", "items": {"enum": [f"value {i}" for i in range(5000)]}}),
    "pattern": AnswerForm.of(
        {"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z]{2,20}( [A-Z][a-z]{2,20})*$"}}
    ),
    "texts of 200": AnswerForm.of({"type": "array", "items": {"type": "string", "maxLength": 200}}),
    "any JSON": AnswerForm.of({"type": "object"}),
}


def mask_times(form: AnswerForm, tokenizer: ErnieTokenizer, stop_ids: frozenset[int]) -> dict[str, float]:
    """Median microseconds a token of random logits."""
    guide, sampler = AnswerGuide(form, tokenizer, stop_ids), Sampler(SamplingOptions())
    random = torch.Generator().manual_seed(0)
    closing = [token_id for text in '"]},' if (token_id := tokenizer.id_of(text)) is not None]
    times: dict[str, list[float]] = {"forced": [], "mask": [], "pick": [], "take": []}

    def timed(name: str, started: float) -> None:
        times[name].append((time.perf_counter() - started) * 1e6)

    for _ in range(300):
        started = time.perf_counter()
        forced = guide.forced_ids()
        timed("forced", started)
        guide.take_forced(forced)
        if guide.is_complete:
            break
        logits = torch.randn(tokenizer.vocab_size, generator=random) * 3
        logits[closing] += 8
        started = time.perf_counter()
        allowed = guide.allowed(logits)
        timed("mask", started)
        started = time.perf_counter()
        token_id = sampler.pick(allowed)
        timed("pick", started)
        started = time.perf_counter()
        guide.take(token_id)
        timed("take", started)
        if token_id in stop_ids:
            break
    return {name: round(statistics.median(ones)) for name, ones in times.items()}


def decode_seconds(model: ernie_local.LoadedModel, form: AnswerForm, in_one_step: bool) -> tuple[float, str]:
    """Seconds of decoding an answer, and its text."""
    chat = ernie_local.Chat(model)
    forced = AnswerGuide.forced_ids if in_one_step else (lambda _guide: [])
    with mock.patch.object(AnswerGuide, "forced_ids", forced):
        list(chat.ask("What is the total?", images="examples/invoice.png", schema=form))
    assert chat.last is not None
    return chat.last.timings.decode, chat.last.text


def closed(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a form of the answer costs.")
    parser.add_argument("--model", default="nano", help="a directory or nano")
    parser.add_argument("--tokenizer", type=Path, help="a SentencePiece model")
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    model = ernie_local.load(arguments.model)
    tokenizer = model.tokenizer
    if arguments.tokenizer is not None:
        tokenizer = ErnieTokenizer(arguments.tokenizer.read_bytes())
    stop_ids = frozenset([tokenizer.id_of("</s>") or 2])
    started = time.perf_counter()
    vocabulary_of(tokenizer, stop_ids)
    prepared = time.perf_counter() - started
    print(f"{tokenizer.vocab_size} tokens, prepared in {prepared:.3f} s; median microseconds a token:")
    masks = {name: mask_times(form, tokenizer, stop_ids) for name, form in FORMS.items()}
    for name, times in masks.items():
        print(f"{name:15}", "  ".join(f"{part} {one:5.0f}" for part, one in times.items()))
    lines = {"type": "array", "minItems": 3, "maxItems": 3, "items": closed(item=TEXT, price=MONEY)}
    form = AnswerForm.of(
        closed(vendor=TEXT, date={"type": "string", "format": "date"}, total=MONEY, lines=lines)
    )
    runs = [[decode_seconds(model, form, one) for one in (True, False)] for _ in range(arguments.runs)]
    assert len({text for run in runs for _, text in run}) == 1, "the answers differ"
    together, alone = (statistics.median(run[index][0] for run in runs) for index in (0, 1))
    print(f"decoding: {together:.3f} s with forced tokens in one step, {alone:.3f} s one by one")
    print(json.dumps({"prepared": prepared, "masks": masks, "together": together, "alone": alone}))


if __name__ == "__main__":
    main()
