"""Says what the bits of a result depend on besides model and input: this code, this processor, its threads,
and what an adapter adds.

Another version, instruction set or number of threads gives another identity, and never finds the result.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import PIL
import torch
import xxhash

from ernie_local.adapters.low_rank import Adapter
from ernie_local.kernels.native import native_module
from ernie_local.planner.cpu_limits import cpu_model_name

_DIGEST_BYTES = 16
_PACKAGE = Path(__file__).resolve().parents[1]


def digest_of(*parts: object) -> str:
    """A hash of the texts of `parts`, each ended, so that no two lists of parts look alike; hexadecimal."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        text = part if isinstance(part, bytes) else str(part).encode()
        state.update(b"%d:" % len(text) + text)
    return state.hexdigest()


def adapter_digest(adapter: Adapter) -> str:
    """A hash of all that an adapter adds, its scale included; hexadecimal."""
    state = xxhash.xxh3_128()
    for name, low_rank in sorted(adapter.weights.items()):
        for matrix in (low_rank.rank_by_columns, low_rank.rows_by_rank):
            state.update(f"{name} {matrix.dtype} {tuple(matrix.shape)} ".encode())
            state.update(matrix.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


@functools.cache
def _code_digest() -> str:
    """Of all that computes: the files of this package, the libraries below it, the processor.

    torch chooses its code by the processor, and another choice may round otherwise.
    """
    files = sorted(path for path in _PACKAGE.rglob("*") if path.suffix in (".py", ".so", ".pyd"))
    texts = [part for path in files for part in (path.relative_to(_PACKAGE), path.read_bytes())]
    libraries = (torch.__version__, np.__version__, PIL.__version__, torch.backends.cpu.get_cpu_capability())
    return digest_of(*texts, *libraries, cpu_model_name())


def computation(device: torch.device, dtype: torch.dtype) -> str:
    """What the bits of a result depend on besides model and input, as it is at this moment."""
    module = native_module()
    instruction_set = None if module is None else module.instruction_set()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    # Sums are split by thread.
    return digest_of(_code_digest(), instruction_set, torch.get_num_threads(), gpu, dtype)
