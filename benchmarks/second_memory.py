"""A full-size checkpoint (see synthesize.py) through two memories and the disk; the upper one is as a GPU's.

    python benchmarks/memory_limit.py 11878MiB \
        python benchmarks/second_memory.py MODEL --ram 8GiB --vram 3686MiB --save paged.pt
    python benchmarks/second_memory.py MODEL --one-memory --compare paged.pt   # or --resident

Both memories are this machine's RAM, so the limit around it is their sum; the processor computes for both.
An image, a long prompt and some decoded tokens: seconds of each, and logits behind each. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from conversation_memory import status_bytes
from full_size import random_ids

from ernie_local import load
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.experts.build import GpuShare, PagingSetup
from ernie_local.experts.device import CudaDevice, Event, PageLock, PageMemory
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.build import build_model
from ernie_local.media.image_size import measure_image
from ernie_local.media.processor import to_patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import cpu_attention_way
from ernie_local.planner.fit import AvailableMemory
from ernie_local.planner.gpu_fit import GpuPlacement, place_on_gpu
from ernie_local.planner.gpu_need import GpuNeed
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.sizes import MIB, parse_bytes

ANSWER_TOKENS = 16


class SecondMemory(CudaDevice):
    """RAM in place of a GPU's memory; what it is told is done at once."""

    def __init__(self) -> None:
        pass

    def lock(self, memory: PageMemory) -> PageLock:
        return PageLock("pageable")

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def drop_unused(self) -> None:
        pass

    def span(self, first: torch.Tensor, num_bytes: int) -> torch.Tensor:
        return first[:num_bytes]  # nothing lies behind it: workspace is apart

    def bring(self, source: torch.Tensor, into: torch.Tensor) -> None:
        into.copy_(source)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def read_back(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:  # type: ignore[override]
        return [tensor.clone() for tensor in tensors]

    def mark(self) -> None:
        return None

    def copy(self, source: torch.Tensor, into: torch.Tensor, after: Event | None) -> Event:
        into.copy_(source)
        return _Done()

    def compute_after(self, event: Event) -> None:
        pass

    def finish(self) -> None:
        pass


class _Done:
    def synchronize(self) -> None:
        pass


def placed(directory: Path, context_size: int, size: str, ram: int, vram: int) -> GpuPlacement:
    """As `load` places the model on a GPU with `vram` bytes that are free."""
    model = read_model(directory)
    width, height = map(int, size.split("x"))
    picture = measure_image("image", (width, height), model.processor)
    chat = ChatPlan(context_size, "float32", "float32", (picture,))
    need = GpuNeed(
        config=model.config,
        chat=chat,
        weights=model.weights(4, in_slots=True),
        plan=model.paging_plan,
        attention=cpu_attention_way(model.config, "float32"),
    )
    return place_on_gpu(need, AvailableMemory(ram, used=status_bytes("VmRSS")), AvailableMemory.of_gpu(vram))


def build(directory: Path, placement: GpuPlacement) -> ErnieModel:
    """The model, with dense weights of the upper memory in RAM as well."""
    share = GpuShare(
        SecondMemory(),
        placement.shared_bytes,
        placement.least_bytes,
        placement.cache_bytes,
        placement.room_bytes,
    )
    assert placement.paged_bytes is not None, "this memory holds all experts"
    setup = PagingSetup(placement.paged_bytes, gpu=share, swaps_image_weights=placement.swapped_bytes > 0)
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        return build_model(checkpoint, config, torch.float32, torch.device("cpu"), setup)


def converse(engine: Engine, directory: Path, size: str, num_tokens: int) -> dict[str, object]:
    """Seconds of an image, a prompt and decoded tokens, and the logits behind each."""
    config, processor = engine.model.config, read_model(directory).processor
    torch.manual_seed(0)  # the same in each run
    width, height = map(int, size.split("x"))
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    patches = to_patches([pixels.numpy()], processor)
    ids = random_ids(num_tokens + ANSWER_TOKENS, config.text.vocab_size)
    media, num_placeholders = config.media, patches[0].num_tokens
    picture = [media.image_start, *[media.image] * num_placeholders, media.image_end]
    seconds, logits = {}, []
    start = time.perf_counter()
    logits.append(engine.prefill(picture, patches))
    seconds["image"] = time.perf_counter() - start
    start = time.perf_counter()
    logits.append(engine.prefill(ids[:num_tokens]))
    seconds["prompt"] = time.perf_counter() - start
    start = time.perf_counter()
    logits += [engine.decode(token) for token in ids[num_tokens:]]
    seconds["decode"] = time.perf_counter() - start
    return {"seconds": seconds, "logits": torch.stack(logits), "image_tokens": num_placeholders}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", default="8GiB")
    parser.add_argument("--vram", default="3686MiB")
    parser.add_argument("--image", default="1000x1400")
    parser.add_argument("--prompt", type=int, default=8000)
    parser.add_argument("--chunk", type=int, default=2048, help="tokens at a time, with one memory")
    parser.add_argument("--resident", action="store_true", help="with every expert in memory instead")
    parser.add_argument("--one-memory", action="store_true", help="with experts paged to --ram alone")
    parser.add_argument("--save", type=Path, help="write the logits there")
    parser.add_argument("--compare", type=Path, help="logits of another run")
    arguments = parser.parse_args()
    context_size = -(-(arguments.prompt + ANSWER_TOKENS + 7000) // 1024) * 1024
    result: dict[str, object] = {}
    if arguments.resident or arguments.one_memory:
        limit = {"ram": arguments.ram} if arguments.one_memory else {}
        options = {"kv_dtype": "float32", "chunk_tokens": arguments.chunk, **limit}
        engine = load(arguments.model, context_size=context_size, **options).engine()
    else:
        ram, vram = parse_bytes(arguments.ram, "ram"), parse_bytes(arguments.vram, "vram")
        placement = placed(arguments.model, context_size, arguments.image, ram, vram)
        model = build(arguments.model, placement)
        engine = Engine(model, context_size, torch.float32, placement.chunk_tokens)
        result["placement"] = list(placement.decisions)
        result["mib"] = {"shared": placement.shared_bytes // MIB, "ram": (placement.paged_bytes or 0) // MIB}
        result["chunk_tokens"] = placement.chunk_tokens
    result |= converse(engine, arguments.model, arguments.image, arguments.prompt)
    logits = result.pop("logits")
    assert isinstance(logits, torch.Tensor)
    experts = engine.model.experts
    if isinstance(experts, PagedExperts):
        result["stats"] = str(experts.stats)
    result["hwm_mib"] = status_bytes("VmHWM") // MIB
    if arguments.save is not None:
        torch.save(logits, arguments.save)
    if arguments.compare is not None:
        other = torch.load(arguments.compare)
        spread = (other.max() - other.min()).item()
        result["rows_equal_to_the_bit"] = int((logits == other).all(dim=1).sum())
        result["rows"] = len(logits)
        result["largest_difference_of_range"] = (logits - other).abs().max().item() / spread
    print(json.dumps(result))


if __name__ == "__main__":
    main()
