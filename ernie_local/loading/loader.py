"""`load`: options, config, checkpoint headers, memory, and only then weights, in this order of cost."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import DEFAULT_CHUNK_TOKENS, check_sizes
from ernie_local.errors import UsageError
from ernie_local.loading.build import build_model, count_weight_bytes
from ernie_local.loading.memory import MemoryNeed, check_memory
from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.loading.options import WEIGHT_DTYPES, find_bytes, find_device, find_dtype, find_kv_dtype
from ernie_local.model.kv_cache import kv_bytes_per_token


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    ram: str | int | None = None,
    vram: str | int | None = None,
    context_size: int | None = None,
    kv_dtype: str | torch.dtype | None = None,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> LoadedModel:
    """Load a model into memory.

    model: a directory, `hf:org/name[@revision]`, or `nano`. device: cpu, cuda or cuda:N. dtype: float32 or
    bfloat16. ram, vram: limits such as "6GiB" or a number of bytes. context_size: most tokens of a
    conversation, by default the model's own limit but at most 32768. kv_dtype: float32, float16, bfloat16 or
    int8, by default dtype, or bfloat16 where weights are packed. chunk_tokens: most tokens computed at a time
    in a prompt.

    Raises UsageError for an argument that means nothing, ModelUnusable for a missing or corrupt model, and
    DoesNotFit, before any weight is read, for a device that is not there or memory that does not suffice.
    """
    started = time.perf_counter()
    torch_device = find_device(device)
    weight_dtype = find_dtype(dtype, "dtype", WEIGHT_DTYPES)
    cache_dtype = find_kv_dtype(kv_dtype, weight_dtype)
    ram_limit, vram_limit = find_bytes(ram, "ram"), find_bytes(vram, "vram")
    if vram_limit is not None and torch_device.type == "cpu":
        raise UsageError(
            f"a vram limit of {vram} with device {str(device)!r}",
            "the processor has no memory of a card to limit",
            'use ram to limit memory, or device="cuda"',
        )
    check_sizes(1 if context_size is None else context_size, chunk_tokens)
    directory = resolve_model(str(model))
    config = read_config(directory)
    if kv_dtype is None and config.quantization is not None:
        cache_dtype = torch.bfloat16  # what the model was trained in; its weights have fewer bits
    settings = EngineSettings(
        context_size=config.text.default_context_size if context_size is None else context_size,
        kv_dtype=cache_dtype,
        chunk_tokens=chunk_tokens,
    )
    with open_checkpoint(directory, config) as checkpoint:
        weight_bytes = count_weight_bytes(checkpoint, config, weight_dtype)
        kv_cache_bytes = settings.context_size * kv_bytes_per_token(config.text, cache_dtype)
        check_memory(MemoryNeed(weight_bytes, kv_cache_bytes), torch_device, ram_limit, vram_limit)
        network = build_model(checkpoint, config, weight_dtype, torch_device)
    seconds = time.perf_counter() - started
    return LoadedModel(network, directory, settings, weight_bytes, seconds, context_limit=context_size)
