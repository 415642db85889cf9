"""Declares the options of `ernie-local chat` and says what they mean for the runtime."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ernie_cli.options import (
    CommonOptions,
    ComputeOptions,
    ContextSize,
    KVDType,
    ModelName,
    Ram,
    Reserve,
    complete_path,
    file_option,
)

if TYPE_CHECKING:
    from ernie_local.loading import LoadOptions
    from ernie_local.sampling import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ComputeOptions, CommonOptions):
    """What was said on the command line; None means that the model or the runtime decides."""

    model: ModelName = "nano"
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", metavar="TEXT", help="The question; - reads it from stdin."),
    ] = None
    images: Annotated[
        tuple[str, ...],
        typer.Option(
            "--image",
            metavar="FILE",
            help="An image, or pages of a PDF (invoice.pdf:1-3); - reads stdin. Repeatable.",
            autocompletion=complete_path,
        ),
    ] = ()
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Chat line by line even if stdin is no terminal.")
    ] = False
    system: Annotated[
        str | None, typer.Option("-s", "--system", metavar="TEXT", help="How the model should behave.")
    ] = None
    max_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="End an answer after N tokens, thoughts included.")
    ] = None
    context_size: ContextSize = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temp",
            "--temperature",
            metavar="X",
            min=0.0,
            help="0 always takes the most likely token. Default: the model's generation_config.json, else 0.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="Sample from the smallest set of tokens with this total probability.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Sample from the N most likely tokens; 0: from all."),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="Drop tokens that are less likely than X times the most likely one.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.01, help="Above 1, repeated tokens become less likely."),
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Sample the same tokens every time.")
    ] = None
    think: Annotated[
        Literal["on", "off", "auto"],
        typer.Option(help="Think before the answer; auto: as the model was made for."),
    ] = "auto"
    think_budget: Annotated[
        str | None, typer.Option(metavar="N", help="End the thoughts after N tokens and answer.")
    ] = None
    hide_thinking: Annotated[bool, typer.Option("--hide-thinking", help="Do not show the thoughts.")] = False
    kv_dtype: KVDType = "auto"
    ram: Ram = None
    reserve: Reserve = None
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --device cuda: memory of the GPU to use; experts that do not fit there are paged. "
            "Default: what is free, less a headroom.",
        ),
    ] = None
    misses: Annotated[
        Literal["auto", "fetch", "compute", "split"],
        typer.Option(
            help="For experts that are not on the GPU. fetch: copy them there; compute: compute them on the "
            "CPU; split: half of each; auto: what bench found fastest here, else fetch."
        ),
    ] = "auto"
    cuda_graphs: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(help="Record the GPU work of a token, all but the experts, and replay it; auto is off."),
    ] = "auto"
    small_below: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="For experts that are not in memory and whose router weight is below X, use the small pages "
            "of a checkpoint made with --dual. Changes answers a little.",
        ),
    ] = None
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is complete.")] = (
        False
    )
    stats: Annotated[
        bool, typer.Option("--stats", help="Show tokens, seconds and memory after each answer.")
    ] = False
    save: Annotated[Path | None, file_option(help_text="Write the chat to FILE at the end.")] = None
    load: Annotated[Path | None, file_option(help_text="Continue a chat written by --save.")] = None
    trace: Annotated[
        Path | None,
        file_option(help_text="Record in FILE which experts the tokens chose, for `bench --replay`."),
    ] = None

    def thinking(self) -> bool | None:
        """Whether to think; None is what the model was made for."""
        return {"on": True, "off": False, "auto": None}[self.think]

    def max_tokens_count(self) -> int | None:
        """Tokens that an answer with its thoughts may have."""
        return _count(self.max_tokens, "max_tokens")

    def context_tokens(self) -> int | None:
        """Tokens that the whole chat may have."""
        return _count(self.context_size, "context_size")

    def think_budget_count(self) -> int | None:
        """Tokens that the thoughts may have before they are closed; 0 closes them at once."""
        return 0 if self.think_budget == "0" else _count(self.think_budget, "thinking_budget")

    def load_options(self) -> LoadOptions:
        """How the model is loaded: the options that `load` has too, as far as they were given."""
        from ernie_local.loading import LoadOptions

        given = {field.name: getattr(self, field.name, None) for field in fields(LoadOptions)}
        given["context_size"] = self.context_tokens()
        return LoadOptions(**{name: value for name, value in given.items() if value is not None})

    def sampling(self, of_model: SamplingOptions) -> SamplingOptions:
        """How tokens are drawn: the options that were given over the model's own."""
        given = {field.name: getattr(self, field.name) for field in fields(of_model)}
        return replace(of_model, **{name: value for name, value in given.items() if value is not None})


def _count(text: str | None, name: str) -> int | None:
    from ernie_local.sizes import parse_count

    return None if text is None else parse_count(text, name)
