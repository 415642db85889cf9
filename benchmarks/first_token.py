"""Seconds from Enter to the first token of an answer about an image, part by part, in fresh processes.

    python benchmarks/first_token.py nano
    python benchmarks/first_token.py MODEL --cold --against ../other-checkout --isa avx2

MODEL may be a checkpoint with random weights (see synthesize.py): no tokenizer is needed, the prompt is the
image alone. With --against, processes of both checkouts take turns, and ratios are medians over pairs of
turns; the other checkout needs its native module beside its sources. --cold makes the system forget the
model's files before each process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

PARTS = ("start and imports", "opening the image", "loading", "tower", "prefill", "first token", "next token")
SOURCES = (".", "quant", "calibration", "cli")


def drop_cached(model: Path) -> None:
    """Make the system forget what it keeps of a model's files."""
    for path in model.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_image(size: str, path: Path) -> None:
    """A page with dark lines on it, WIDTHxHEIGHT."""
    width, height = (int(number) for number in size.split("x"))
    image = Image.new("RGB", (width, height), "white")
    for row in range(20, height - 10, 25):
        image.paste((40, 40, 40), (30, row, width - 30, row + 8))
    image.save(path)


def measure_here(model_name: str, image_path: str, threads: int, started: float) -> dict[str, float]:
    """Seconds of each part, in this process. started: time.monotonic() when it was asked for."""
    from collections.abc import Callable

    import torch

    from ernie_local import load
    from ernie_local.model_files import find_model_files
    from ernie_local.session.image import open_chat_images

    seconds: dict[str, float] = {}
    before = started

    def note(part: str) -> None:
        nonlocal before
        now = time.monotonic()
        seconds[part] = round(seconds.get(part, 0.0) + now - before, 4)
        before = now

    note("start and imports")
    files = find_model_files(model_name)
    images = open_chat_images([image_path], files.image_processor)
    patches = [image.patches() for image in images]
    note("opening the image")
    model = load(files, threads=threads)
    note("loading")
    encode: Callable[..., object] = model.network.encode_images

    def timed(*arguments: object) -> object:
        nonlocal before
        before = time.monotonic()
        features = encode(*arguments)
        note("tower")
        return features

    model.network.encode_images = timed  # type: ignore[method-assign,assignment]
    media = model.config.media
    ids = [media.image_start, *[media.image] * patches[0].num_tokens, media.image_end]
    engine = model.engine()
    logits = engine.prefill(ids, patches)
    note("prefill")
    token = int(torch.argmax(logits))
    note("first token")
    seconds["all, until the first token"] = round(before - started, 4)
    engine.decode(token)
    note("next token")
    return seconds


def measure(checkout: Path, model: str, image: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """In a fresh process with the sources of `checkout`."""
    if arguments.cold:
        drop_cached(Path(model))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(str(checkout / each) for each in SOURCES))
    if arguments.isa is not None:
        environment["ERNIE_LOCAL_ISA"] = arguments.isa
    command = [sys.executable, __file__, model, "--threads", str(arguments.threads), "--image", str(image)]
    command += ["--here", repr(time.monotonic())]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="a directory, or nano")
    parser.add_argument("--image", default="1000x700", help="WIDTHxHEIGHT, or a file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="read the model's files from the disk each time")
    parser.add_argument("--isa", help="the instruction set to compute with, as ERNIE_LOCAL_ISA")
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout, measured in turn")
    parser.add_argument("--here", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is not None:
        isa = os.environ.get("ERNIE_LOCAL_ISA")
        if isa is not None:
            from ernie_local.kernels.native import choose_instruction_set

            choose_instruction_set(isa)
        print(json.dumps(measure_here(arguments.model, arguments.image, arguments.threads, arguments.here)))
        return
    image = Path(arguments.image)
    if not image.exists():
        image = Path(tempfile.gettempdir()) / f"first-token-{arguments.image}.png"
        write_image(arguments.image, image)
    checkouts = {"this": Path(__file__).parents[1]}
    if arguments.against is not None:
        checkouts["other"] = arguments.against.resolve()
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append({n: measure(path, arguments.model, image, arguments) for n, path in checkouts.items()})
        print(json.dumps(rounds[-1]), flush=True)
    names = [*PARTS, "all, until the first token"]
    print("| seconds | " + " | ".join(checkouts) + (" | ratio |" if len(checkouts) > 1 else " |"))
    print("|---" * (1 + len(checkouts) + (len(checkouts) > 1)) + "|")
    for part in names:
        cells = [f"{statistics.median(one[n][part] for one in rounds):.2f}" for n in checkouts]
        if len(checkouts) > 1:
            cells.append(f"{statistics.median(one['this'][part] / one['other'][part] for one in rounds):.2f}")
        print(f"| {part} | " + " | ".join(cells) + " |")
    print(json.dumps({"model": arguments.model, "cold": arguments.cold, "rounds": rounds}))


if __name__ == "__main__":
    main()
