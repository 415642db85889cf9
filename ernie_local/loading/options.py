"""Defines the options of `load`, and checks them against this machine and this code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from ernie_local import defaults
from ernie_local.adapters.low_rank import Adapter
from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.experts.math import check_triton_formats
from ernie_local.experts.options import MISS_RULES, PagingOptions
from ernie_local.kernels.arguments import GpuKernels
from ernie_local.kernels.attention import gpu_attends
from ernie_local.kernels.gpu import check_gpu_kernels
from ernie_local.kernels.graphs import CudaGraphRecorder
from ernie_local.model.kv_cache import KV_DTYPES
from ernie_local.model.shared_steps import MOST_SEQUENCES
from ernie_local.model_files import ModelFiles
from ernie_local.planner.control_groups import SYSTEM_ROOT
from ernie_local.planner.cpu_limits import CpuLimits, check_threads, choose_threads
from ernie_local.reuse.cache_folder import CacheFolder
from ernie_local.sizes import parse_bytes

WEIGHT_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded; "auto" leaves a choice to `ernie_local.defaults` or to what the machine has.

    device: cpu, cuda or cuda:N. dtype: float32 or bfloat16; auto is float32 on the CPU for packed weights and
    for plain ones of up to 4 GiB, else bfloat16. context_size: most tokens of a conversation, by default the
    model's own limit but at most 32768. kv_dtype: float32, float16, bfloat16 or int8; auto is dtype, or
    bfloat16 where weights are packed; on a GPU float16 where it does not multiply bfloat16, and int8 where
    that leaves too little to experts.

    threads: CPU threads of this process; by default torch decides, but no more than the CPUs that the process
    may use, with a warning. efficiency_cores: whether torch may count them in on a processor that has
    performance cores besides, where `bench` measured that they help.

    ram: memory for the whole process, such as "6GiB" or a number of bytes; auto is what is free, less
    `reserve` (2 GiB, or 1/7 of what there is if that is less). Where not all routed experts fit, they are
    paged from disk. vram: memory of the GPU;
    auto is what is free there, less a headroom. Experts that do not fit there are paged through `ram`.
    misses: what happens to experts that the GPU lacks: fetch, compute (on the CPU) or split; auto is fetch.
    small_below: experts of less router weight are served by their small pages where the others are not in
    memory; it changes what the model computes. chunk_tokens: most tokens of a prompt computed at a time, by
    default 2048 or what the memory allows. parallel: conversations for which there is memory at once, 1 to
    16, whose tokens are decoded together on the CPU where weights are packed; auto is up to 8 that leave
    experts most of the memory, and 1 on a GPU.

    gpu_kernels: what computes packed weights on a GPU: triton, torch (slower; for comparing), or auto, which
    is triton where that runs, with a warning where it does not. cuda_graphs: on records what a decoded token
    computes on a GPU apart from routed experts, and replays it; auto is off.

    lora: adapters whose sum is added to products of the weights: directories as PEFT, PaddleFormers or
    ERNIEKit writes them, "DIR:SCALE" for one times a number, or Adapters. They stay in memory, in bfloat16
    beside packed weights.

    cache: a folder in which results are kept for later processes: features of images, and keys and values of
    conversations. They tell what was in images and said about them; only this user may read the folder.
    cache_size: most bytes of it, by default 1 GiB.
    """

    device: str | torch.device = "cpu"
    dtype: str | torch.dtype = defaults.AUTO
    kv_dtype: str | torch.dtype = defaults.AUTO
    context_size: int | None = None
    threads: int | None = None
    efficiency_cores: bool | None = None
    ram: str | int = defaults.AUTO
    reserve: str | int | None = None
    vram: str | int = defaults.AUTO
    misses: str = defaults.AUTO
    small_below: float | None = None
    chunk_tokens: int | None = None
    parallel: int | str = 1
    gpu_kernels: str = defaults.AUTO
    cuda_graphs: str = defaults.AUTO
    lora: Sequence[str | os.PathLike[str] | Adapter] = ()
    cache: str | os.PathLike[str] | None = None
    cache_size: str | int | None = None

    def open_cache(self) -> CacheFolder | None:
        """The cache folder, if one was chosen; UsageError for one that cannot be used, or a size alone."""
        size = None if self.cache_size is None else find_bytes(self.cache_size, "cache_size")
        if self.cache is not None:
            return CacheFolder.open(self.cache, defaults.cache_bytes(size))
        if size is not None:
            raise UsageError(
                f"{parameter('cache_size', self.cache_size)} without {parameter('cache')}",
                "it limits the folder that results are kept in, and none is kept without a folder",
                f"add {parameter('cache', 'FOLDER')}, or omit it",
            )
        return None

    def num_parallel(self, device: torch.device) -> int | None:
        """Conversations at once; None where that is to be found. UsageError for a number that cannot be."""
        if self.parallel == defaults.AUTO:
            return None if device.type == "cpu" else 1
        if not isinstance(self.parallel, int) or not 1 <= self.parallel <= MOST_SEQUENCES:
            raise UsageError(
                f"{parameter('parallel', self.parallel)} is not a number from 1 to {MOST_SEQUENCES}, or auto",
                "so many sequences share a step of the model at most",
                parameter("parallel", defaults.AUTO),
            )
        if self.parallel > 1 and device.type != "cpu":
            raise UsageError(
                f"{parameter('parallel', self.parallel)} with {parameter('device', device)}",
                "on a GPU memory is planned for 1 conversation, and tokens are decoded one after the other",
                f"omit it, or use {parameter('device', 'cpu')}",
            )
        return self.parallel

    def paging(self) -> PagingOptions:
        """The choices about paging; UsageError for an unknown rule."""
        name = defaults.miss_rule(self.misses, None)
        if name not in MISS_RULES:
            why = "these are the rules for experts that the GPU lacks"
            raise _unknown("misses", name, MISS_RULES, why, defaults.AUTO)
        return PagingOptions(MISS_RULES[name], self.small_below)


class ThreadWarning(UserWarning):
    """Fewer CPU threads compute than torch chose, as machine or container allow or kinds of cores suggest."""


def use_threads(
    threads: int | None, root: Path = SYSTEM_ROOT, *, efficiency_cores: bool | None = None
) -> None:
    """Set the number of CPU threads of this process; None: as torch decides, within what is allowed here.

    Warns where that is less. root: the folder that holds proc and sys. efficiency_cores and errors: as of
    `check_threads` and `choose_threads`.
    """
    limits, default = CpuLimits.of_machine(root), torch.get_num_threads()
    chosen, notice = choose_threads(
        check_threads(threads), default, limits, efficiency_cores=efficiency_cores
    )
    if chosen != torch.get_num_threads():
        torch.set_num_threads(chosen)
    if notice is not None:
        warnings.warn(notice, ThreadWarning, stacklevel=2)


def choose_dtype(name: str | torch.dtype, files: ModelFiles, device: torch.device) -> torch.dtype:
    """The dtype to compute in: by name, or the default for this model and device."""
    if name == defaults.AUTO:
        name = defaults.compute_dtype(files.plain_weight_bytes, on_gpu=device.type != "cpu")
    return find_dtype(name, "dtype", WEIGHT_DTYPES)


def choose_kv_dtype(
    name: str | torch.dtype, weight_dtype: torch.dtype, *, is_packed: bool = False
) -> torch.dtype:
    """The dtype of the KV cache: by name, or the default for these weights."""
    if name != defaults.AUTO:
        return find_dtype(name, "kv_dtype", KV_DTYPES)
    return KV_DTYPES[defaults.kv_dtype(dtype_name(weight_dtype), is_packed=is_packed)]


def dtype_name(dtype: torch.dtype) -> str:
    """As options name it."""
    return str(dtype).removeprefix("torch.")


def find_device(name: str | torch.device) -> torch.device:
    """The torch device. UsageError for an unknown name, DoesNotFit for one that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "mps":
        raise DoesNotFit(
            f"{parameter('device')} 'mps' is not supported, the model runs on cpu and cuda",
            "no code for weights on Apple's GPU has ever been run",
            f"use {parameter('device', 'cpu')}: on an Apple computer both share one memory",
        )
    if device is None or device.type not in ("cpu", "cuda"):
        why = "the model runs on the processor or on a CUDA GPU"
        raise _unknown("device", name, ("cpu", "cuda", "cuda:N"), why, "cpu")
    if device.type == "cuda":
        # Not earlier: this starts the CUDA driver, which takes time and memory.
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if num_gpus <= (device.index or 0):
            raise DoesNotFit(
                f"{parameter('device')} {str(name)!r} was asked for, but torch sees {num_gpus} CUDA GPUs",
                "there is no such GPU, no driver for it, or this torch was built without CUDA",
                f"use {parameter('device', 'cpu')}, or install a torch build with CUDA",
            )
    return device


def find_dtype(name: str | torch.dtype, argument: str, known: dict[str, torch.dtype]) -> torch.dtype:
    """The torch dtype among `known`; UsageError names the argument."""
    for known_name, dtype in known.items():
        if name in (known_name, dtype):
            return dtype
    raise _unknown(argument, name, known, "only these are implemented and tested", next(iter(known)))


def _unknown(argument: str, given: object, known: Iterable[str], why: str, best: str) -> UsageError:
    what = f"{parameter(argument)} {str(given)!r} is not one of {', '.join(known)}"
    return UsageError(what, why, f"use {parameter(argument, best)}")


def find_bytes(size: str | int, name: str, least: int = 1) -> int:
    """An amount of memory in bytes, from "6GiB" or a number; UsageError names the argument."""
    if isinstance(size, str):
        return parse_bytes(size, name, least)
    if size < least:
        raise UsageError(
            f"{parameter(name)} is {size} bytes, at least {least} is needed",
            f"it is a number of bytes, {least} or more",
            f"use {parameter(name, '6GiB')}",
        )
    return size


def find_limit(size: str | int, name: str) -> int | None:
    """As `find_bytes`; None for "auto"."""
    return None if size == defaults.AUTO else find_bytes(size, name)


_CUDA_GRAPHS = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class GpuChoices:
    """How a GPU computes. graphs: auto is off until measurements show where they help."""

    kernels: GpuKernels
    graphs: str

    @staticmethod
    def of(kernels: str, graphs: str, device: torch.device) -> GpuChoices:
        """UsageError for unknown names, and for names other than auto on the CPU."""
        if kernels not in get_args(GpuKernels):
            why = "a GPU computes by Triton's kernels or by plain PyTorch"
            raise _unknown("gpu_kernels", kernels, get_args(GpuKernels), why, defaults.AUTO)
        if graphs not in _CUDA_GRAPHS:
            why = "a GPU's decode is recorded or not"
            raise _unknown("cuda_graphs", graphs, _CUDA_GRAPHS, why, defaults.AUTO)
        if device.type == "cpu" and (kernels, graphs) != ("auto", "auto"):
            raise UsageError(
                f"{parameter('gpu_kernels', kernels)} and {parameter('cuda_graphs', graphs)} on the CPU",
                "the processor has its own kernels and no CUDA graphs; these are choices for a GPU",
                f"use {parameter('device', 'cuda')}, or omit both",
            )
        return GpuChoices(kernels, graphs)  # type: ignore[arg-type]

    def check_adapters(self, config: ModelConfig, options: LoadOptions) -> None:
        """DoesNotFit for adapters where what computes on a GPU has no place for them."""
        if not options.lora:
            return
        if config.quantization is not None and self.kernels != "torch":
            raise DoesNotFit(
                f"{parameter('lora')} on a GPU with {parameter('gpu_kernels', self.kernels)}",
                "Triton's kernels multiply packed weights alone, and add no adapter",
                f"use {parameter('gpu_kernels', 'torch')}, which is slower, or {parameter('device', 'cpu')}",
            )
        if options.paging().miss_rule.computes:
            raise DoesNotFit(
                f"{parameter('lora')} with {parameter('misses', options.misses)}",
                "the adapter lies in the memory of the GPU, where the processor cannot compute with it",
                parameter("misses", "fetch"),
            )

    def check(self, config: ModelConfig, device: torch.device, kv_dtype: torch.dtype) -> None:
        """DoesNotFit for what this GPU cannot do; a warning where auto finds no kernels."""
        if self.kernels == "triton":
            check_triton_formats(config)
        if self.kernels == "triton" or config.quantization is not None:
            check_gpu_kernels(device, self.kernels)
        if self.graphs == "on" and not gpu_attends(device, kv_dtype, self.kernels):
            raise DoesNotFit(
                f"{parameter('cuda_graphs', 'on')}: no attention kernel on {device} for a cache in "
                f"{kv_dtype}",
                "a graph needs fixed addresses, which only Triton's attention kernel has: for int8, float16, "
                "and bfloat16 from compute capability 8.0 on",
                f"use {parameter('kv_dtype')} int8 or float16 with Triton's kernels, or omit the first",
            )

    def recorder(self, device: torch.device) -> CudaGraphRecorder | None:
        """What records decode on this GPU; None unless graphs are on."""
        return CudaGraphRecorder(device) if self.graphs == "on" else None
