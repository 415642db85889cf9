"""Names of devices and dtypes as callers give them, checked against this machine and this code.

Knows nothing of models.
"""

from __future__ import annotations

from typing import overload

import torch

from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.model.kv_cache import KV_DTYPES
from ernie_local.sizes import parse_bytes

WEIGHT_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def find_device(name: str | torch.device) -> torch.device:
    """The torch device; one that this machine lacks raises DoesNotFit, an unknown name UsageError."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise DoesNotFit(
            "device 'mps' asked for, the model runs on cpu and cuda",
            "there is no code for weights on Apple's GPU that was ever seen to work",
            'use device="cpu": on an Apple computer both share one memory',
        )
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"device {str(name)!r} is not one of cpu, cuda and cuda:N",
            "the model runs on the processor or on a CUDA GPU",
            'use device="cpu"',
        )
    if device.type == "cuda":
        # Only here: the question starts the CUDA driver, which takes time and memory.
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if num_gpus <= (device.index or 0):
            raise DoesNotFit(
                f"device {str(name)!r} asked for, but torch sees {num_gpus} CUDA GPUs",
                "there is no such GPU, no driver for it, or this torch was built without CUDA",
                'use device="cpu", or install a torch build with CUDA',
            )
    return device


def find_dtype(name: str | torch.dtype, option: str, known: dict[str, torch.dtype]) -> torch.dtype:
    """The torch dtype among `known`; anything else raises UsageError naming the option."""
    for known_name, dtype in known.items():
        if name in (known_name, dtype):
            return dtype
    raise UsageError(
        f"{option} {str(name)!r} is not one of {', '.join(known)}",
        "only these are implemented and tested",
        f"use {next(iter(known))}",
    )


def find_kv_dtype(name: str | torch.dtype | None, weight_dtype: torch.dtype) -> torch.dtype:
    """The dtype of the KV cache; None means that of the weights."""
    return weight_dtype if name is None else find_dtype(name, "kv_dtype", KV_DTYPES)


@overload
def find_bytes(size: None, option: str) -> None: ...
@overload
def find_bytes(size: str | int, option: str) -> int: ...
@overload
def find_bytes(size: str | int | None, option: str) -> int | None: ...
def find_bytes(size: str | int | None, option: str) -> int | None:
    """A memory limit in bytes, from "6GiB" or a number; None is no limit."""
    if isinstance(size, str):
        return parse_bytes(size, option)
    if size is not None and size < 1:
        raise UsageError(
            f"{option} is {size} bytes, at least 1 is needed",
            "a memory limit is a number of bytes above zero",
            f'write {option}="6GiB"',
        )
    return size
