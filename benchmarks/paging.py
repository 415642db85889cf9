"""Prefill and decode of a full-size checkpoint (see synthesize.py) whose experts are paged.

    python benchmarks/memory_limit.py 8GiB python benchmarks/paging.py MODEL --ram 8GiB

The last line is one JSON object: tokens a second, hit rates, bytes, the disk's speed in the same run, the
share of what hit rate and disk allow, and the share of the busiest experts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from full_size import busiest_share, bytes_per_token, plain_read, random_ids

from ernie_local import load
from ernie_local.experts.options import MISS_RULES
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel
from ernie_local.session.answer import peak_memory_bytes

WARM_TOKENS = 4


def disk_speed(experts: PagedExperts, num_pages: int = 160) -> float:
    """GB/s of reading random text pages as the runtime does, four at a time, without computing."""
    import random

    keys = [key for key in experts.store.page_bytes if key.bank == "text"]
    random.Random(0).shuffle(keys)
    buffers = [torch.empty(2 << 23, dtype=torch.uint8) for _ in range(4)]
    aligned = [buffer[-buffer.data_ptr() % 4096 :] for buffer in buffers]
    start = time.perf_counter()
    waiting: list[Future[None]] = []
    total = 0
    with ThreadPoolExecutor(len(aligned)) as threads:
        for index, key in enumerate(keys[:num_pages]):
            num_bytes = experts.store.page_bytes[key]
            if len(waiting) == len(aligned):
                waiting.pop(0).result()
            into = aligned[index % len(aligned)][:num_bytes]
            waiting.append(threads.submit(experts.store.read, key, into))
            total += num_bytes
        for reading in waiting:
            reading.result()
    return total / (time.perf_counter() - start) / 1e9


def measure(model: LoadedModel, prompt: int, decode: int, memory: float) -> dict[str, object]:
    """memory: GB/s of a plain read, measured before the model took the memory for it."""
    experts = model.network.experts
    assert isinstance(experts, PagedExperts)
    vocab_size = model.config.text.vocab_size
    results: dict[str, object] = {"busiest_8_of_64": busiest_share(model)}  # it fills the cache, too
    engine = model.engine()
    before, start = experts.stats.copy(), time.perf_counter()
    engine.prefill(random_ids(prompt, vocab_size))
    results["prefill_s"] = time.perf_counter() - start
    spent = experts.stats.since(before)
    text = spent.banks["text"]
    page_bytes = max(experts.store.page_bytes.values())
    results["prompt_pages"] = text.prompt_hits + text.prompt_misses
    results["prompt_wait_s"] = spent.prompt_wait_seconds
    disk = [disk_speed(experts)]
    for token in random_ids(WARM_TOKENS * 5, vocab_size):  # the cache finds out what decode wants
        engine.decode(token)
    before, seconds = experts.stats.copy(), []
    for token in random_ids(decode, vocab_size):
        start = time.perf_counter()
        engine.decode(token)
        seconds.append(time.perf_counter() - start)
    spent = experts.stats.since(before)
    disk.append(disk_speed(experts))
    gb_s = statistics.mean(disk)
    mean = statistics.mean(seconds)
    read = spent.decode_bytes_read / decode
    tables = model.config.quantization
    assert tables is not None
    all_read = bytes_per_token(model)
    # What is read from disk can come while what is there is computed, so the slower of the two decides.
    allowed = 1 / max(read / gb_s / 1e9, all_read / memory / 1e9)
    results |= {
        "prompt_read_once_s": results["prompt_pages"] * page_bytes / gb_s / 1e9,  # type: ignore[operator]
        "decode_tok_s": 1 / mean,
        "decode_median_tok_s": 1 / statistics.median(seconds),
        "hit_rate": spent.banks["text"].decode_hit_rate,
        "read_mb_a_token": read / 1e6,
        "waited_ms_a_token": 1e3 * spent.decode_wait_seconds / decode,
        "disk_gb_s": gb_s,
        "memory_gb_s": memory,
        "allowed_tok_s": allowed,
        "share_of_allowed": 1 / mean / allowed,
        "small_pages_used": spent.small_pages_used,
        "gpu_hit_rate": None if spent.gpu is None else spent.gpu.banks["text"].decode_hit_rate,
        "copied_mb_a_token": None if spent.gpu is None else spent.gpu.decode_bytes_read / decode / 1e6,
        "frames": experts.top.cache.slots.num_frames,
        "peak_rss_bytes": peak_memory_bytes(),
    }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", default="8GiB")
    parser.add_argument("--ctx-size", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vram", default="auto", help="of a GPU")
    parser.add_argument("--misses", choices=list(MISS_RULES), default="fetch")
    parser.add_argument("--small-below", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    memory = plain_read(3)
    model = load(
        arguments.model,
        device=arguments.device,
        ram=arguments.ram,
        vram=arguments.vram,
        context_size=arguments.ctx_size,
        misses=arguments.misses,
        small_below=arguments.small_below,
    )
    model.wait_until_resident()
    print(f"loaded in {model.load_seconds:.0f} s")
    results = measure(model, arguments.prompt, arguments.decode, memory)
    print(json.dumps({**vars(arguments), "model": arguments.model.name, **results}))


if __name__ == "__main__":
    main()
