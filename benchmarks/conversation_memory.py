"""The memory of one conversation that fills its context, in a process of its own: images, text, an answer.

    python benchmarks/conversation_memory.py MODEL --ctx-size 4096 --image 1240x1754

Prints one JSON object: the high-water mark of the process (VmHWM) in the end and after each phase, in bytes.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from PIL import Image

from ernie_local import load
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel


def status_bytes(key: str) -> int:
    """Of this process, as the kernel counts it: VmHWM or VmRSS."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) << 10


def image(size: str) -> Image.Image:
    width, height = (int(side) for side in size.split("x"))
    return Image.frombytes("RGB", (width, height), os.urandom(3 * width * height))


def converse(model: LoadedModel, sizes: list[str], num_decoded: int) -> dict[str, int]:
    """A prompt of images and random text that fills the context, and so many tokens behind it."""
    model.wait_until_resident()
    marks = {"load": status_bytes("VmHWM")}
    media = model.config.media
    patches = model.patches([image(size) for size in sizes])
    ids: list[int] = []
    for one in patches:
        ids += [media.image_start, *[media.image] * one.num_tokens, media.image_end]
    engine = model.engine()
    num_text = engine.context_size - len(ids) - num_decoded
    assert num_text > 0, (engine.context_size, len(ids))
    ids += torch.randint(20, min(100_000, model.config.text.vocab_size), (num_text,)).tolist()
    engine.prefill(ids, patches)
    marks["prompt"] = status_bytes("VmHWM")
    for token_id in ids[-num_decoded:]:
        engine.decode(token_id)
    marks["decode"] = status_bytes("VmHWM")
    return marks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--ctx-size", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=None)
    parser.add_argument("--image", action="append", default=[], help="WIDTHxHEIGHT, repeatable")
    parser.add_argument("--ram", default="auto")
    parser.add_argument("--decode", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(
        arguments.model,
        dtype=arguments.dtype,
        ram=arguments.ram,
        context_size=arguments.ctx_size,
        kv_dtype=arguments.kv_dtype,
        chunk_tokens=arguments.chunk,
    )
    marks = converse(model, arguments.image, arguments.decode)
    experts = model.network.experts
    frames = experts.top.cache.slots.num_frames if isinstance(experts, PagedExperts) else None
    results: dict[str, object] = {
        "peak_bytes": status_bytes("VmHWM"),
        "marks": marks,
        "weight_bytes": model.weight_bytes,
        "chunk_tokens": model.settings.chunk_tokens,
        "frames": frames,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
