"""Registers operators with torch, and runs each on the CPU by compiled code or, without it, by plain torch.

Every family of operators is one file with one skeleton: the public functions, the check of their arguments,
the CPU, the GPU, and at the end `register` with schema and fake. reference.py says in plain torch what each
computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from ernie_local.kernels.native import native_module, warn_without_native

Result = TypeVar("Result")
LIBRARY = torch.library.Library("ernie_local", "DEF")
# More tokens than these are better served by torch's matrix products.
MOST_TOKENS = 16


def _like_first(first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first)


def register(
    schema: str,
    groups: Sequence[type | None],
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    fake: Callable[..., Any] = _like_first,
) -> None:
    """Tell torch of an operator.

    groups: for each argument of `cpu` and `cuda` the named tuple that it is (its fields stand in the schema,
    in their order), or None for a single argument. fake: takes the schema's arguments; gives shapes and
    dtypes, by default those of the first argument.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    torch.library.register_fake(f"ernie_local::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, _gathered(cpu, groups), "CPU")
    if cuda is not None:
        LIBRARY.impl(name, _gathered(cuda, groups), "CUDA")


def _gathered(function: Callable[..., Any], groups: Sequence[Any]) -> Callable[..., Any]:
    def call(*flat: Any) -> Any:
        arguments, start = [], 0
        for group in groups:
            if group is None:
                arguments.append(flat[start])
                start += 1
            else:
                stop = start + len(group._fields)
                arguments.append(group(*flat[start:stop]))  # torch leaves out defaults at the end
                start = stop
        return function(*arguments)

    return call


def needs_no_dispatch(tensor: Tensor) -> bool:
    """Whether torch would come to the CPU code anyway.

    Its way there costs 5 microseconds a call, a hundred times a token. What observes torch's dispatcher (a
    profiler, say) does not see these calls.
    """
    return type(tensor) is Tensor and tensor.is_cpu and not torch.compiler.is_compiling()


def suits_decode_ops(hidden: Tensor, most_tokens: int = MOST_TOKENS) -> bool:
    """Whether norm, router and attention of few tokens serve `hidden`, (tokens, size)."""
    return suits_native(hidden) and hidden.shape[0] <= most_tokens


def suits_native(hidden: Tensor) -> bool:
    """Whether hidden is (at least one token, size) float32 on the CPU, and wants no gradients."""
    return (
        hidden.dtype == torch.float32
        and hidden.is_cpu
        and hidden.ndim == 2
        and hidden.shape[0] >= 1
        and not torch.is_grad_enabled()
    )


def ready_module() -> ModuleType | None:
    """The compiled module, set to as many threads as torch uses; None where it is missing."""
    module = native_module()
    if module is not None and module.num_threads() != torch.get_num_threads():
        module.set_num_threads(torch.get_num_threads())
    return module


def native_or_reference(
    native: Callable[..., Result | None],
    check: Callable[..., None],
    reference: Callable[..., Result],
    *arguments: Any,
) -> Result:
    """The result of `native(module, *arguments)`, or without the module of `reference(*arguments)`.

    native gives None, having done nothing, where it refuses the arguments. It checks them all; so `check`,
    which raises, is called only then: a few microseconds saved in each of a hundred calls a token. Arguments
    that pass it may still have gaps between their rows, and are tried again without.
    """
    module = ready_module()
    if module is not None:
        result = native(module, *arguments)
        if result is not None:
            return result
    check(*arguments)
    if module is None:
        warn_without_native()
        return reference(*arguments)
    result = native(module, *map(_without_gaps, arguments))
    assert result is not None, native
    return result


def _without_gaps(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.contiguous()
    if isinstance(argument, tuple):
        return type(argument)(*map(_without_gaps, argument))
    return argument
