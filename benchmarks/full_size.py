"""Prefill and decode of a full-size checkpoint with random weights (see synthesize.py), held in RAM.

    python benchmarks/full_size.py MODEL --prompt 512 --decode 40      # the last line is one JSON object

Tokens per second, bytes of weights read per second beside a plain read of memory, the share of the busiest
experts, and, with --profile, where a decoded token's time goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ernie_local import load
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.config import Bank
from ernie_local.engine import Engine
from ernie_local.loading import LoadedModel
from ernie_local.media.patches import MediaPiece, Patches

WARM_TOKENS = 4


def random_ids(count: int, vocab_size: int) -> list[int]:
    # Below the media tokens of the published vocabulary.
    return torch.randint(3, min(vocab_size, 100_000), (count,)).tolist()


def bytes_per_token(model: LoadedModel) -> int:
    """Packed bytes that one decoded text token reads: everything dense, and top_k experts of each layer."""
    text, tables = model.config.text, model.config.quantization
    assert tables is not None
    total = 0
    for name, module in model.network.named_modules():
        if name.startswith("vision") or (not hasattr(module, "packed") and not hasattr(module, "page")):
            continue
        if name == "embed_tokens" and model.network.lm_head is not None:
            continue
        total += sum(buffer.nbytes for buffer in module.buffers(recurse=False))
    packed = PackedTensors(model.config)
    for layer_id, bank in tables.experts:
        if bank == "text":
            largest = max(layout.page_bytes for layout in packed.page_layouts(layer_id, bank).values())
            total += text.experts_per_token * largest
    return total


def plain_read(rounds: int = 7) -> float:
    """GB/s of torch.sum over 1 GiB."""
    memory = torch.ones(1 << 28)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        memory.sum()
        seconds.append(time.perf_counter() - start)
    return memory.nbytes / statistics.median(seconds) / 1e9


def decode(engine: Engine, count: int, vocab_size: int) -> tuple[float, list[float]]:
    """Median seconds of a token, the first few left out; all of them."""
    seconds = []
    for token_id in random_ids(count, vocab_size):
        start = time.perf_counter()
        engine.decode(token_id)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_TOKENS:]), seconds


def prefill_text(model: LoadedModel, num_tokens: int) -> float:
    engine = model.engine(context_size=num_tokens + 8)
    ids = random_ids(num_tokens, model.config.text.vocab_size)
    start = time.perf_counter()
    engine.prefill(ids)
    return time.perf_counter() - start


def random_image(model: LoadedModel, width: int, height: int) -> Patches:
    from PIL import Image

    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy()
    return model.patches([Image.fromarray(pixels)])[0]


def prefill_image(model: LoadedModel, image: Patches) -> tuple[float, float]:
    """Seconds of the vision tower with resampler, and of the language model over the image's tokens."""
    media, network = model.config.media, model.network
    ids = [media.image_start, *[media.image] * image.num_tokens, media.image_end]
    encode, seconds = network.encode_images, []

    def timed(
        images: Sequence[MediaPiece], before_stage: Callable[[], None] | None = None
    ) -> list[torch.Tensor]:
        start = time.perf_counter()
        features = encode(images, before_stage)
        seconds.append(time.perf_counter() - start)
        return features

    network.encode_images = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    model.engine(context_size=len(ids) + 8).prefill(ids, [image])
    total = time.perf_counter() - start
    network.encode_images = encode  # type: ignore[method-assign]
    return seconds[0], total - seconds[0]


def large_product(size: int = 2048) -> float:
    """G multiply-adds a second of a large float32 product in torch; bfloat16 is slow without AVX-512."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return size**3 / min(seconds) / 1e9


def tower_multiply_adds(model: LoadedModel, image: Patches) -> int:
    """Of the vision tower and the resampler: linear layers, and attention of each patch to all others."""
    vision, text = model.config.vision, model.config.text
    patches, width = image.pixel_values.shape[0], vision.hidden_size
    block = 4 * width**2 + 2 * width * vision.intermediate_size + 2 * patches * width
    merged = width * vision.spatial_merge_size**2
    resampler = image.num_tokens * (merged**2 * (1 + 1 + 2 + 1) + merged * text.hidden_size)
    return int(patches * (vision.depth * block + vision.patch_values * width) + resampler)


def busiest_share(model: LoadedModel, num_tokens: int = 512) -> float:
    """Share of choices that go to a layer's eight busiest text experts, mean over layers; 0.125 if even."""
    engine = model.engine(context_size=num_tokens + 8)
    counts: dict[int, Counter[int]] = {}

    def note(
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        counts.setdefault(layer_id, Counter()).update(expert_ids.flatten().tolist())

    with engine.reporting_routes(note):
        engine.prefill(random_ids(num_tokens, model.config.text.vocab_size))
    shares = [sum(n for _, n in each.most_common(8)) / each.total() for each in counts.values()]
    return statistics.mean(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image", default="1000x700", help="WIDTHxHEIGHT, or none")
    parser.add_argument("--profile", action="store_true", help="print where a decoded token's time goes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.model)
    model.wait_until_resident()
    print(f"loaded {model.weight_bytes / 1e9:.2f} GB in {model.load_seconds:.0f} s")
    vocab_size = model.config.text.vocab_size
    results: dict[str, object] = {"model": str(arguments.model)}
    if arguments.prompt:
        results["busiest_8_of_64"] = busiest_share(model)
    if arguments.prompt:
        # `busiest_share` has paid for memory that these find ready.
        seconds = [prefill_text(model, arguments.prompt) for _ in range(2)]
        results["prefill_tok_s"] = arguments.prompt / min(seconds)
    if arguments.image != "none":
        width, height = (int(size) for size in arguments.image.split("x"))
        image = random_image(model, width, height)
        timed = [prefill_image(model, image) for _ in range(2)]
        results["image_tokens"] = image.num_tokens
        results["tower_s"] = min(tower for tower, _ in timed)
        results["image_tok_s"] = image.num_tokens / min(rest for _, rest in timed)
        results["float32_gmac_s"] = large_product()
        results["tower_mac"] = tower_multiply_adds(model, image)
    engine = model.engine(context_size=arguments.prompt + arguments.decode + WARM_TOKENS + 64)
    engine.prefill(random_ids(max(arguments.prompt, 1), vocab_size))
    read_before = plain_read()
    median, _ = decode(engine, arguments.decode + WARM_TOKENS, vocab_size)
    results["decode_tok_s"] = 1 / median
    results["decode_gb_s"] = bytes_per_token(model) / median / 1e9
    results["bytes_per_token"] = bytes_per_token(model)
    results["plain_read_gb_s"] = (read_before + plain_read()) / 2
    if arguments.profile:
        profile(engine, vocab_size, median)
    print(json.dumps(results))


class TimedModule:
    """The native module with the time spent in each of its functions."""

    def __init__(self, module: object) -> None:
        self._module = module
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        function = getattr(self._module, name)

        def timed(*arguments: object) -> object:
            start = time.perf_counter()
            result = function(*arguments)
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1
            return result

        setattr(self, name, timed)
        return timed


def profile(engine: Engine, vocab_size: int, token_seconds: float, count: int = 20) -> None:
    """Print where a decoded token's time goes; `token_seconds` is what it takes unobserved.

    The attention half of a layer is taken apart into its operators here, so that reading weights can be told
    from the rest; the rest is what an unobserved token takes beyond the reading.
    """
    from ernie_local.kernels import native
    from ernie_local.model.attention import SelfAttention

    timed, projections = TimedModule(native.native_module()), SelfAttention.packed_projections
    find_module = native.find_module
    native.find_module = lambda: (timed, "")  # type: ignore[assignment]
    SelfAttention.packed_projections = None  # type: ignore[assignment]
    for token_id in random_ids(count, vocab_size):
        engine.decode(token_id)
    SelfAttention.packed_projections = projections  # type: ignore[method-assign]
    native.find_module = find_module
    milliseconds = {name: 1e3 * seconds / count for name, seconds in timed.seconds.items()}
    token = 1e3 * token_seconds
    reading = milliseconds["packed_experts"] + milliseconds["packed_linear"]
    rows = [
        ("a token, unobserved", token),
        ("experts and gated MLPs", milliseconds["packed_experts"]),
        ("other matrices", milliseconds["packed_linear"]),
        ("everything else", token - reading),
        ("of it attention over the cache", milliseconds["decode_attention"]),
        ("of it routers", milliseconds["route"]),
        ("of it norms", milliseconds["rms_norm"]),
    ]
    print("| | ms | share |\n|---|---:|---:|")
    for name, value in rows:
        print(f"| {name} | {value:.2f} | {100 * value / token:.1f} % |")


if __name__ == "__main__":
    main()
