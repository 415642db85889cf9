"""Turns a frozen dataclass into a command's options; declares the options that several commands share.

Imports typer and nothing heavy: `--help` and shell completion read this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer


def complete_path(incomplete: str) -> list[str]:
    """The files and folders whose path begins with `incomplete`; folders end with a slash."""
    head, slash, start = incomplete.rpartition("/")
    folder = Path(head + slash).expanduser()
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [
        f"{head}{slash}{path.name}{'/' if path.is_dir() else ''}"
        for path in found
        if path.name.startswith(start) and (start or not path.name.startswith("."))
    ]


def complete_model(incomplete: str) -> list[str]:
    """What MODEL may be: the model in the package, a prefix of the Hugging Face hub, or a path."""
    return [*(name for name in ("nano", "hf:") if name.startswith(incomplete)), *complete_path(incomplete)]


def complete_gpu(incomplete: str) -> list[str]:
    """The ids of known GPUs."""
    from ernie_local.planner.gpus import gpu_models

    return [gpu.gpu_id for gpu in gpu_models() if gpu.gpu_id.startswith(incomplete)]


def model_argument(help_text: str = "A directory, hf:org/name[@revision], or nano.", **settings: Any) -> Any:
    """The argument that names a model, with completion."""
    return typer.Argument(help=help_text, autocompletion=complete_model, **settings)


def file_option(*names: str, help_text: str, metavar: str = "FILE") -> Any:
    """An option that takes the path of a file, with completion."""
    return typer.Option(*names, metavar=metavar, help=help_text, autocompletion=complete_path)


DTypeName = Literal["auto", "float32", "bfloat16"]
KVDTypeName = Literal["auto", "float32", "float16", "bfloat16", "int8"]
GpuKernelsName = Literal["auto", "triton", "torch"]

ModelName = Annotated[str, model_argument()]
Source = Annotated[str, model_argument("A bfloat16 model: a directory, hf:org/name, or nano.", metavar="SRC")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Use other samples.")]
ContextSize = Annotated[
    str | None,
    typer.Option("--ctx-size", metavar="N", help="Tokens of the whole chat, such as 32k."),
]
KVDType = Annotated[KVDTypeName, typer.Option(help="Number type of the KV cache.")]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads to compute with.")]
Ram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that the whole process may use, such as 6GiB; experts that do not fit are read from "
        "disk when they are needed. Default: what is free, less --reserve.",
    ),
]
Reserve = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Free memory to leave to other programs. Default: 1GiB."),
]


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options of every command; main acts on `debug`."""

    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (docs/json.md).")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and in what a model computes."""

    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:N.")] = "cpu"
    dtype: Annotated[
        DTypeName,
        typer.Option(
            help="Number type to compute in. auto: on a CPU float32 for quantized models and models of up "
            "to 4 GiB, else bfloat16."
        ),
    ] = "auto"
    gpu_kernels: Annotated[
        GpuKernelsName,
        typer.Option(
            help="What multiplies packed weights on a GPU: Triton kernels or plain PyTorch, which is slower. "
            "auto: Triton where it runs, else PyTorch with a warning."
        ),
    ] = "auto"
    threads: Threads = None


def command_from(
    options_class: type[Any], run: Callable[[typer.Context, Any], None], doc: str | None
) -> Callable[..., None]:
    """A function for typer whose parameters are the fields of `options_class`: own fields, then mixins'.

    `run` gets the context and the filled dataclass; `doc` is the help text.
    """
    hints = get_type_hints(options_class, include_extras=True)
    defaults = {field.name: field.default for field in fields(options_class)}
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context]
    for name in _in_order_of_help(options_class):
        default = inspect.Parameter.empty if defaults[name] is MISSING else defaults[name]
        if default == ():
            default = None  # an empty list would be shown as a default
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_for_typer(hints[name])
            )
        )

    def command(context: typer.Context, **values: Any) -> None:
        for name, default in defaults.items():
            if isinstance(values[name], list) or default == ():
                values[name] = tuple(values[name] or ())
        run(context, options_class(**values))

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__doc__ = doc
    return command


def _for_typer(hint: Any) -> Any:
    """A repeatable option is a tuple in the frozen dataclass, and a list to typer."""
    inner, *extras = get_args(hint)
    if get_origin(inner) is tuple:
        return Annotated[list[get_args(inner)[0]], *extras]  # type: ignore[misc]
    return hint


def _in_order_of_help(options_class: type[Any]) -> Iterator[str]:
    for one in options_class.__mro__:
        yield from inspect.get_annotations(one)
