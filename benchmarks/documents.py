"""How many documents an hour are read one at a time and several at once, turn about in one run.

    python benchmarks/documents.py MODEL [--ram 8GiB] [--at-once 1 8] [--documents 8] [--tokens 256]

A document is an image and an answer of so many random tokens, for models with random weights too (see
synthesize.py). A thread takes the next document as soon as it has answered one, as `extract --parallel`
does. A first document alone fills the memory. The last line is one JSON object: documents an hour of each
round and, for each number at once, the seconds of its threads in each part, a document; waiting counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from first_token import write_image

from ernie_local import load
from ernie_local.loading import LoadedModel
from ernie_local.machine.random_model import text_ids
from ernie_local.media.patches import Patches
from ernie_local.sampling import Sampler, SamplingOptions
from ernie_local.session.image import open_chat_images

QUESTION_TOKENS = 64


def read_document(
    model: LoadedModel, patches: Patches, answer: list[int], context_size: int, seconds: dict[str, float]
) -> None:
    """Prefill the image and a question, then decode `answer`; adds to the seconds of each part."""
    engine = model.engine(context_size=context_size)
    media = model.config.media
    ids = [media.image_start, *[media.image] * patches.num_tokens, media.image_end]
    encoded = began = time.perf_counter()

    def note(_index: int, _features: torch.Tensor) -> None:
        nonlocal encoded
        encoded = time.perf_counter()

    engine.prefill([*ids, *text_ids(model.config, QUESTION_TOKENS)], [patches], on_encoded=note)
    prefilled = time.perf_counter()
    sampler = Sampler(SamplingOptions(temperature=0.0))
    for token_id in answer:
        sampler.pick(engine.decode(token_id))
    seconds["tower"] += encoded - began
    seconds["prefill"] += prefilled - encoded
    seconds["decode"] += time.perf_counter() - prefilled


def read_all(
    model: LoadedModel, patches: Patches, answers: list[list[int]], at_once: int, context_size: int
) -> tuple[float, dict[str, float]]:
    """Documents an hour, and the seconds that all threads spent in each part."""
    waiting: Iterator[list[int]] = iter(answers)
    taking = threading.Lock()
    spent: list[dict[str, float]] = [defaultdict(float) for _ in range(at_once)]

    def work(seconds: dict[str, float]) -> None:
        while True:
            with taking:
                answer = next(waiting, None)
            if answer is None:
                return
            read_document(model, patches, answer, context_size, seconds)

    threads = [threading.Thread(target=work, args=(seconds,)) for seconds in spent]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    parts = {part: sum(one[part] for one in spent) for part in ("tower", "prefill", "decode")}
    return len(answers) / elapsed * 3600, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--documents", type=int, default=8, help="in each round, of each number at once")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--image", default="640x480", help="WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    page = Path(tempfile.gettempdir()) / f"document-{arguments.image}.png"
    write_image(arguments.image, page)
    model = load(
        arguments.model, ram=arguments.ram, threads=arguments.threads, parallel=max(arguments.at_once)
    )
    model.wait_until_resident()
    print(*model.paging_notes(), sep="\n")
    patches = open_chat_images([str(page)], model.files.image_processor)[0].patches()
    context_size = patches.num_tokens + 2 + QUESTION_TOKENS + arguments.tokens
    read_document(model, patches, text_ids(model.config, 8), context_size, defaultdict(float))
    rates: dict[int, list[float]] = defaultdict(list)
    parts: dict[int, dict[str, float]] = {}
    for number in range(arguments.rounds):
        answers = [
            text_ids(model.config, arguments.tokens, number * arguments.documents + each)
            for each in range(arguments.documents)
        ]
        for at_once in arguments.at_once:
            rate, spent = read_all(model, patches, answers, at_once, context_size)
            rates[at_once].append(rate)
            parts[at_once] = {part: round(value / len(answers), 2) for part, value in spent.items()}
            print(f"{at_once} at once: {rate:.1f} documents an hour", parts[at_once], flush=True)
    first = rates[arguments.at_once[0]]
    print(
        json.dumps(
            {
                "documents_an_hour": rates,
                "seconds_a_document": parts,
                f"times_{arguments.at_once[0]}": {
                    at_once: statistics.median(one / base for one, base in zip(found, first, strict=True))
                    for at_once, found in rates.items()
                },
            }
        )
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
