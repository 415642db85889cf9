"""Turns a frozen dataclass into a command's options; declares the options that several commands share.

Imports typer and nothing heavy: `--help` and shell completion read this module.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ernie_cli.settings import PASSWORD_VARIABLE, efficiency_cores
from ernie_local.errors import UsageError

if TYPE_CHECKING:
    from ernie_local.loading import LoadOptions


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


def possible_threads(threads: int | None) -> int | None:
    """`threads`, if this machine has so many processors; DoesNotFit otherwise, before any file is opened."""
    from ernie_local.planner.cpu_limits import check_threads

    return check_threads(threads)


def option(*names: str, default: Any = None, **settings: Any) -> Any:
    """A field of a command's options, declared as by `typer.Option(*names, **settings)`."""
    return field(default=default, metadata={"typer": typer.Option(*names, **settings)})


def argument(*, default: Any = MISSING, **settings: Any) -> Any:
    """A field of a command's options that is given by its place, as by `typer.Argument(**settings)`."""
    return field(default=default, metadata={"typer": typer.Argument(**settings)})


DTypeName = Literal["auto", "float32", "bfloat16"]
KVDTypeName = Literal["auto", "float32", "float16", "bfloat16", "int8"]
LARGEST_SEED = 2**63 - 1
MOST_SAMPLES = 1_000_000  # which take days to draw
FamilyName = Literal["images", "documents", "charts", "texts", "fields", "clips", "closeups"]

size_option = partial(option, metavar="SIZE")
fps_option = partial(option, metavar="X", min=0.001, max=1000.0)
frames_option = partial(option, metavar="N", min=1, max=180)
share_option = partial(option, metavar="X", min=0.0, max=1.0)
file_option = partial(option, metavar="FILE", autocompletion=complete_path)
path_argument = partial(argument, autocompletion=complete_path)
model_argument = partial(
    argument, help="A directory, hf:org/name[@revision], or nano.", autocompletion=complete_model
)
source_argument = partial(
    model_argument, metavar="SRC", help="A bfloat16 model: a directory, hf:org/name, or nano."
)
seed_option = partial(option, default=0, metavar="N", min=0, max=LARGEST_SEED, help="Use other samples.")
context_size_option = partial(
    option, "--ctx-size", metavar="N", help="Tokens of the whole chat, such as 32k."
)
kv_dtype_option = partial(
    option,
    default="auto",
    help="Number type of the KV cache; auto: 16 bits or more, on a GPU int8 where experts lack memory.",
)
# Other users see the arguments of a process, not its environment.
password_option = partial(
    option,
    metavar="TEXT",
    envvar=PASSWORD_VARIABLE,
    help=f"Opens encrypted PDFs (or {PASSWORD_VARIABLE}, as other users see the command line).",
)
threads_option = partial(
    option,
    metavar="N",
    min=1,
    callback=possible_threads,
    help="CPU threads to compute with. Default: as PyTorch chooses, at most the CPUs that it may use, and "
    "efficiency cores only where `bench` measured that they help.",
)
template_option = partial(
    option,
    "--template",
    metavar="NAME",
    help="The chat template: pt, thinking, text, or file for the one among the model's files. Choices may "
    "follow, as in thinking,tools=after: tools=before|after, results=own-line|same-line, "
    "labels=spaced|plain, thinks=on|off|free. Default: as the model's files say.",
)
lora_option = partial(option, "--lora", default=(), metavar="DIR[:SCALE]", autocompletion=complete_path)
parallel_option = partial(option, metavar="N|auto")
ram_option = partial(
    size_option,
    help="Memory that the whole process may use, such as 6GiB; experts that do not fit are read from disk "
    "when they are needed. Default: what is free, less --reserve.",
)
reserve_option = partial(
    size_option,
    help="Free memory to leave to other programs, or 0. Default: 2GiB, or 1/7 of it if that is less.",
)


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """The options of every command; main acts on `debug`."""

    as_json: bool = option("--json", default=False, help="Print one JSON object (docs/json.md).")
    debug: bool = option("--debug", default=False, help="Show a traceback with an error.")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and in what a model computes."""

    device: str = option(default="cpu", metavar="NAME", help="cpu, cuda or cuda:N.")
    dtype: DTypeName = option(
        default="auto",
        help="Number type to compute in. auto: on a CPU float32 for quantized models and models of up to 4 "
        "GiB, else bfloat16.",
    )
    gpu_kernels: Literal["auto", "triton", "torch"] = option(
        default="auto",
        help="What multiplies packed weights on a GPU: Triton kernels or plain PyTorch, which is slower. "
        "auto: Triton where it runs, else PyTorch with a warning.",
    )
    threads: int | None = threads_option()


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How closely a model looks at images."""

    max_pixels: str | None = option(
        metavar="N",
        help="Shrink larger images to N pixels, such as 1m; fewer are read faster, and small text is lost. "
        "Default: as the model's files say, or the code published with them.",
    )
    image_tokens: str | None = option(
        metavar="N",
        help="Shrink images that take more than N tokens; none is enlarged. Of this, --max-pixels and "
        "--detail, the smallest limit counts.",
    )
    detail: Literal["low", "high", "auto"] = option(
        default="high",
        help="high: as many tokens as the model's files or --max-pixels allow; low: at most 256 an image; "
        "auto: as high, but images that would take more than half of the context share that half.",
    )
    trim: bool = option(
        "--trim", default=False, help="Cut the blank margins of pages and scans; a small one stays."
    )

    def max_pixels_count(self) -> int | None:
        """What --max-pixels says."""
        return parse_given_count(self.max_pixels, "max_pixels")

    def image_tokens_count(self) -> int | None:
        """What --image-tokens says."""
        return parse_given_count(self.image_tokens, "image_tokens")


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(ComputeOptions):
    """How much memory a loaded model and its conversations take, and what happens where it is short."""

    context_size: str | None = context_size_option()
    kv_dtype: KVDTypeName = kv_dtype_option()
    ram: str | None = ram_option()
    reserve: str | None = reserve_option()
    vram: str | None = size_option(
        help="With --device cuda: memory of the GPU to use; experts that do not fit there are paged. "
        "Default: what is free, less a headroom."
    )
    misses: Literal["auto", "fetch", "compute", "split"] = option(
        default="auto",
        help="For experts that are not on the GPU. fetch: copy them there; compute: compute them on the CPU; "
        "split: half of each; auto: what bench found fastest here, else fetch.",
    )
    cuda_graphs: Literal["auto", "on", "off"] = option(
        default="auto",
        help="Record the GPU work of a token, all but the experts, and replay it; auto is off.",
    )
    lora: tuple[str, ...] = lora_option(
        help="A LoRA adapter for the model, times SCALE, added while it runs; it stays in memory. Repeatable."
    )
    small_below: float | None = share_option(
        help="For experts that are not in memory and whose router weight is below X, use the small pages of "
        "a checkpoint made with --dual. Changes answers a little."
    )

    def context_tokens(self) -> int | None:
        """Tokens that the whole chat may have."""
        return parse_given_count(self.context_size, "context_size")

    def load_options(self) -> LoadOptions:
        """How the model is loaded."""
        return load_options(self, context_size=self.context_tokens())

    def check_memory(self) -> None:
        """UsageError for a size of the context or a share that means nothing."""
        self.context_tokens()
        if self.small_below is not None:
            check_is_number("--small-below", self.small_below)


@dataclass(frozen=True, kw_only=True)
class ThinkingOptions:
    """How long an answer may become, and whether it begins with a thought."""

    max_tokens: str | None = option(metavar="N", help="End an answer after N tokens, thoughts included.")
    think: Literal["on", "off", "auto"] = option(
        default="auto", help="Think before the answer; auto: as the model was made for."
    )
    variant: str | None = template_option()
    think_budget: str | None = option(metavar="N", help="End the thoughts after N tokens and answer.")

    def thinking(self) -> bool | None:
        """Whether to think; None is what the model was made for."""
        return {"on": True, "off": False, "auto": None}[self.think]

    def max_tokens_count(self) -> int | None:
        """Tokens that an answer with its thoughts may have."""
        return parse_given_count(self.max_tokens, "max_tokens")

    def think_budget_count(self) -> int | None:
        """Tokens that the thoughts may have before they are closed; 0 closes them at once."""
        return 0 if self.think_budget == "0" else parse_given_count(self.think_budget, "thinking_budget")

    def check_lengths(self, context_size: int | None) -> None:
        """UsageError for limits that mean nothing, or that contradict each other or --ctx-size."""
        max_tokens = self.max_tokens_count()
        self.think_budget_count()
        if max_tokens is not None and context_size is not None and max_tokens >= context_size:
            raise UsageError(
                f"--max-tokens {max_tokens} does not fit into --ctx-size {context_size}",
                "the context holds the question and the answer",
                f"--ctx-size {max_tokens + 1024} or more",
            )
        if self.think == "off" and self.think_budget is not None:
            raise UsageError(
                f"--think-budget {self.think_budget} with --think off",
                "there are no thoughts to limit",
                "remove one of them",
            )


def check_is_number(option: str, value: float) -> None:
    """Raise UsageError for nan, which passes all bounds."""
    if math.isnan(value):
        raise UsageError(f"{option} nan is not a number", "it must be from 0 to 1", f"{option} 0.1")


def parse_given_count(text: str | None, name: str) -> int | None:
    """The count of an option, as of `parse_count`; None where it was not given."""
    from ernie_local.sizes import parse_count

    return None if text is None else parse_count(text, name)


def parse_parallel(text: str) -> int | str:
    """What --parallel says, as `load` takes it, which refuses what means nothing."""
    return int(text) if text.isdecimal() else text


def load_options(options: ComputeOptions, **counts: Any) -> LoadOptions:
    """How a model is loaded: the options that `load` has too, as far as they were given, and `counts`."""
    from ernie_local.loading import LoadOptions

    given = {one.name: getattr(options, one.name, None) for one in fields(LoadOptions)} | counts
    given["efficiency_cores"] = efficiency_cores(options.threads)
    return LoadOptions(**{name: value for name, value in given.items() if value is not None})


def command_from(
    options_class: type[Any], run: Callable[[typer.Context, Any], None], doc: str | None
) -> Callable[..., None]:
    """A function for typer whose parameters are the fields of `options_class`: own fields, then mixins'.

    `run` gets the context and the filled dataclass; `doc` is the help text.
    """
    hints = get_type_hints(options_class)
    declared = {one.name: one for one in fields(options_class)}
    is_repeatable = {name: get_origin(hint) is tuple for name, hint in hints.items()}
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    ]
    for name in _in_order_of_help(options_class):
        # What is repeatable is a tuple in the frozen dataclass, and a list to typer.
        hint = list[get_args(hints[name])[0]] if is_repeatable[name] else hints[name]  # type: ignore[misc]
        default = declared[name].default
        if default is MISSING:
            default = inspect.Parameter.empty
        elif is_repeatable[name]:
            default = None  # an empty list would be shown as a default
        annotation = Annotated[hint, declared[name].metadata["typer"]]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def command(context: typer.Context, **values: Any) -> None:
        repeated = {name: tuple(values[name] or ()) for name in values if is_repeatable[name]}
        run(context, options_class(**values | repeated))

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__doc__ = doc
    return command


def _in_order_of_help(options_class: type[Any]) -> Iterator[str]:
    for one in options_class.__mro__:
        yield from inspect.get_annotations(one)
