"""Reads fields from held-out small images and counts exact ones: by `extract`, and by single questions.

Prints, too, how often fields above each confidence are right. As in the model card of nano, exact means equal
to the last character; the fields are texts, and each is described by its question.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import ernie_local
from ernie_calibration.generated import held_out_samples
from ernie_calibration.sample import Sample
from ernie_local.extraction.reader import ChatReader, ReadingOptions
from ernie_local.media.open_image import open_images
from ernie_local.session import Chat
from ernie_local.structured import AnswerForm

_LEVELS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = ernie_local.load(options.model)
    chat, plain_chat = Chat(model), Chat(model)
    right: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    found: list[tuple[float, bool]] = []
    kinds: Counter[tuple[str, bool]] = Counter()
    for sample in held_out_samples(options.documents, options.seed, questions_each=99, transcript_every=0):
        began = time.perf_counter()
        judged = _extracted(chat, sample)
        seconds["extract"] += time.perf_counter() - began
        found += judged
        for turn, (_, is_right) in zip(sample.turns, judged, strict=True):
            kinds[turn.kind, is_right] += 1
        right["extract"] += sum(is_right for _, is_right in judged)
        began = time.perf_counter()
        right["questions"] += sum(_asked(plain_chat, sample))
        seconds["questions"] += time.perf_counter() - began
    print(f"{options.documents} documents, {len(found)} fields")
    for way, count in right.items():
        print(f"{way:<10} {count} exact, {count / len(found):.1%}, {seconds[way]:.0f} s")
    _print_levels(found)
    for kind in sorted({kind for kind, _ in kinds}):
        num_right, of_all = kinds[kind, True], kinds[kind, True] + kinds[kind, False]
        print(f"{kind:<16} {num_right:>4} of {of_all}")


def _extracted(chat: Chat, sample: Sample) -> list[tuple[float, bool]]:
    """Confidence of each field, and whether it is right."""
    names = [f"field{index}" for index in range(len(sample.turns))]
    fields = {
        name: {"type": "string", "description": turn.question}
        for name, turn in zip(names, sample.turns, strict=True)
    }
    form = AnswerForm.of({"type": "object", "properties": fields, "required": names})
    reader = ChatReader(chat, ReadingOptions(form, ask="each"))
    read = reader.read(open_images(sample.images[0]))
    return [
        (read.confidence[name], read.fields[name] == turn.answer)
        for name, turn in zip(names, sample.turns, strict=True)
    ]


def _asked(chat: Chat, sample: Sample) -> list[bool]:
    answers = []
    for turn in sample.turns:
        for _ in chat.ask(turn.question, images=sample.images):
            pass
        assert chat.last is not None
        answers.append(chat.last.text == turn.answer)
        chat.undo()
    return answers


def _print_levels(found: Sequence[tuple[float, bool]]) -> None:
    for level in _LEVELS:
        above = [is_right for confidence, is_right in found if confidence >= level]
        share = f"{sum(above) / len(above):.1%}" if above else "-"
        print(f"confidence >= {level:<4} {len(above):>5} fields, {share} right")


if __name__ == "__main__":
    main()
