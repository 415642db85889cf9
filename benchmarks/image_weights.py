"""Memory of a conversation with images where experts are paged, and how long the tower takes to come back.

    python benchmarks/image_weights.py MODEL --ram 2560MiB --image 1000x700

MODEL is a checkpoint of synthesize.py. Prints one JSON object: resident memory and frames of experts while
images are encoded and behind each turn, the high-water mark, and seconds of reading, after the system's cache
of the files was dropped and after it was not. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from conversation_memory import image, status_bytes

from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel, LoadOptions, load_model
from ernie_local.media.image_size import measure_image
from ernie_local.model_files import find_model_files
from ernie_local.sizes import MIB, parse_bytes


def converse(model: LoadedModel, size: str, num_decoded: int) -> list[dict[str, object]]:
    """Image, text, image, text: each a prompt and some decoded tokens."""
    network, media = model.network, model.config.media
    experts = network.experts
    assert isinstance(experts, PagedExperts)
    marks: list[dict[str, object]] = []

    def mark(moment: str) -> None:
        frames, rss, most = experts.top.cache.slots.num_frames, status_bytes("VmRSS"), status_bytes("VmHWM")
        marks.append({"moment": moment, "rss_mib": rss // MIB, "hwm_mib": most // MIB, "frames": frames})

    mark("loaded")
    network.resampler.register_forward_hook(lambda *_: mark("encoded"))
    engine = model.engine()
    for turn in ("image", "text", "image", "text"):
        patches = model.patches([image(size)]) if turn == "image" else []
        ids = torch.randint(20, min(100_000, model.config.text.vocab_size), (40,)).tolist()
        for one in patches:
            ids = [media.image_start, *[media.image] * one.num_tokens, media.image_end, *ids]
        engine.prefill(ids, patches)
        mark(f"{turn} read")
        for token_id in ids[-num_decoded:]:
            engine.decode(token_id)
        mark(f"{turn} answered")
    return marks


def reading_seconds(model: LoadedModel, *, is_cold: bool, rounds: int) -> list[tuple[float, float]]:
    """Of bringing the weights for images back: of the clock, and of the processor."""
    weights = model.network.image_weights
    assert weights is not None, "this memory keeps the tower"
    seconds = []
    for _ in range(rounds):
        if is_cold:
            for path in model.directory.glob("*.safetensors"):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start, start_cpu = time.perf_counter(), time.process_time()
        weights.read()
        seconds.append((time.perf_counter() - start, time.process_time() - start_cpu))
        weights.drop()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", required=True)
    parser.add_argument("--image", default="1000x700", help="WIDTHxHEIGHT")
    parser.add_argument("--ctx-size", type=int, default=3072)
    parser.add_argument("--decode", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    files, (width, height) = find_model_files(arguments.model), map(int, arguments.image.split("x"))
    options = LoadOptions(
        ram=arguments.ram, dtype="float32", context_size=arguments.ctx_size, threads=arguments.threads
    )
    planned = measure_image("image", (width, height), files.image_processor)
    model = load_model(files, options, images=[planned])
    marks = converse(model, arguments.image, arguments.decode)
    weights = model.network.image_weights
    results: dict[str, object] = {
        "limit_mib": parse_bytes(arguments.ram) // MIB,
        "peak_bytes": status_bytes("VmHWM"),
        "image_weight_bytes": None if weights is None else weights.num_bytes,
        "marks": marks,
    }
    if weights is not None:
        for name, is_cold in (("cold_s", True), ("warm_s", False)):
            results[name] = reading_seconds(model, is_cold=is_cold, rounds=arguments.rounds)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
