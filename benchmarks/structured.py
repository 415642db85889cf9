"""Asks a model about images in drawn schemas, thinking and not, and checks each answer by jsonschema.

    PYTHONPATH=. python benchmarks/structured.py --schemas 200

Each schema is asked about one generated document four times: with thinking off and on, with room for an
answer and with almost none. An answer fits its schema, or there is none and NoAnswer (exit code 7) says so.
Anything else counts as wrong, is printed, and makes the exit code 1. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings

import ernie_local
from ernie_calibration.generated import held_out_samples
from ernie_local.errors import NoAnswer
from ernie_local.media.open_image import open_images
from ernie_local.sampling import SamplingOptions
from ernie_local.session import Chat, ChatImage, ChatMessage, ImagePart, open_chat_images
from tests.runtime.structured.schemas import FORMAT_CHECKER, VALIDATOR, Raw, schemas

# Small models think in the questions that they know, and end no thought by themselves.
_THOUGHT_TOKENS = 16
_OUTCOMES = ("valid", "cut", "wrong")
_WAYS = [(thinking, is_small) for thinking in (False, True) for is_small in (False, True)]


def drawn_schemas(count: int, seed_number: int) -> list[Raw]:
    """So many schemas, the same for each seed."""
    drawn: list[Raw] = []

    @seed(seed_number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas())
    def draw(schema: Raw) -> None:
        drawn.append(schema)

    draw()
    return drawn


def outcome(chat: Chat, schema: Raw, images: Sequence[ChatImage], *, thinking: bool, max_tokens: int) -> str:
    """Ask once: "valid", "cut" where max_tokens left no answer, else what is wrong."""
    message = ChatMessage("user", (*images, "What does this document say?"))
    budget = _THOUGHT_TOKENS if thinking else None
    try:
        for _ in chat.send(
            [message], schema=schema, thinking=thinking, thinking_budget=budget, max_tokens=max_tokens
        ):
            pass
    except NoAnswer:
        assert chat.last is not None
        return "cut" if chat.last.finish_reason == "length" else f"no answer: {chat.last.finish_reason}"
    except Exception:  # noqa: BLE001  a crash is what is looked for
        return traceback.format_exc()
    answer = chat.last
    assert answer is not None
    if json.loads(answer.text) != answer.value:
        return f"its text is another value: {answer.text}"
    if thinking and not answer.usage.reasoning_tokens:
        return "it did not think"
    errors = VALIDATOR(schema, format_checker=FORMAT_CHECKER).iter_errors(answer.value)
    return next((f"{error.message}: {answer.text}" for error in errors), "valid")


def main() -> int:
    """Ask, print, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = ernie_local.load(options.model, threads=options.threads)
    drawn = drawn_schemas(options.schemas, options.seed)
    counts: Counter[tuple[bool, bool, str]] = Counter()
    closed = 0
    began = time.perf_counter()
    samples = held_out_samples(len(drawn), options.seed, transcript_every=0)
    for number, (schema, sample) in enumerate(zip(drawn, samples, strict=True)):
        parts = [ImagePart(image) for image in open_images(sample.images[0])]
        images = open_chat_images(parts, model.image_processor, model.settings.context_size)
        # Greedy and not, as random tokens find other ways through a schema.
        sampling = SamplingOptions(temperature=float(number % 2), seed=options.seed + number)
        chat = Chat(model, sampling=sampling)
        for thinking, is_small in _WAYS:
            most = 2 + number % 16 if is_small else options.max_tokens
            found = outcome(chat, schema, images, thinking=thinking, max_tokens=most)
            counts[thinking, is_small, found if found in ("valid", "cut") else "wrong"] += 1
            assert chat.last is not None
            closed += thinking and chat.last.usage.reasoning_tokens < _THOUGHT_TOKENS and not is_small
            if found not in ("valid", "cut"):
                print(
                    f"schema {number}, thinking {thinking}, max tokens {most}: {found}\n{json.dumps(schema)}"
                )
    return report(counts, len(drawn), closed, time.perf_counter() - began)


def report(counts: Counter[tuple[bool, bool, str]], num_schemas: int, closed: int, seconds: float) -> int:
    """Print a table and a line of JSON; returns the exit code."""
    print(f"{'':<32}{'valid':>7}{'cut':>7}{'wrong':>7}")
    for thinking, is_small in _WAYS:
        name = f"thinking {'on' if thinking else 'off'}, {'few tokens' if is_small else 'room'}"
        print(f"{name:<32}" + "".join(f"{counts[thinking, is_small, one]:>7}" for one in _OUTCOMES))
    totals = {one: sum(n for (*_, found), n in counts.items() if found == one) for one in _OUTCOMES}
    print(json.dumps({"schemas": num_schemas, **totals, "thoughts_ended_by_model": closed,
                      "seconds": round(seconds)}))  # fmt: skip
    return 1 if totals["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
