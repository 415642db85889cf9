"""The command `ernie-local chat`: its options and the order of its steps.

Everything that can be wrong is looked at before the model is loaded. Imports typer and nothing heavy: the
rest is imported when the command runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ernie_cli.chat_options import ChatOptions, CudaGraphs, DType, GpuKernelsOption, KVDType, Misses, Think
from ernie_cli.invocation import Invocation


def chat(  # long: each option of the command is a parameter
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A directory, hf:org/name[@revision], or nano (the small model that comes along)."
        ),
    ] = "nano",
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", metavar="TEXT", help="The question; - reads it from stdin."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="An image, or pages of a PDF (invoice.pdf:1-3); - is stdin. Repeatable."
        ),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Chat line by line even where stdin is no terminal.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("-s", "--system", metavar="TEXT", help="How the model should behave.")
    ] = None,
    max_tokens: Annotated[
        str | None, typer.Option(metavar="N", help="End an answer after N tokens, thoughts included.")
    ] = None,
    ctx_size: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens that the whole chat may have, such as 32k.")
    ] = None,
    temp: Annotated[
        float | None,
        typer.Option(
            "--temp",
            "--temperature",
            metavar="X",
            min=0.0,
            help="0 always takes the likeliest token. Default: the model's generation_config.json, else 0.",
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="X", min=0.0, max=1.0, help="Draw from this mass.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Draw from the N likeliest; 0: all.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0.0, max=1.0, help="Drop tokens less likely than X times the likeliest."
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", min=0.01, help="Above 1: repeated tokens become less likely.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Draw the same tokens every time.")
    ] = None,
    think: Annotated[
        Think, typer.Option(help="Think before the answer; auto is what the model was made for.")
    ] = "auto",
    think_budget: Annotated[
        str | None, typer.Option(metavar="N", help="Close the thoughts after N tokens and answer.")
    ] = None,
    hide_thinking: Annotated[bool, typer.Option("--hide-thinking", help="Do not show the thoughts.")] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to compute.")] = "cpu",
    dtype: Annotated[
        DType,
        typer.Option(
            help="Compute in; auto is float32 on a CPU for quantized models and up to 4 GiB, else bfloat16."
        ),
    ] = "auto",
    kv_dtype: Annotated[KVDType, typer.Option(help="Number type of the KV cache.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads to compute with.")
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that the whole process may have, such as 6GiB; experts that do not fit are read "
            "from disk when they are needed. Default: auto, what is free less --reserve.",
        ),
    ] = None,
    reserve: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Leave so much memory to others (auto: 1GiB).")
    ] = None,
    vram: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --device cuda: GPU memory to use; experts that do not fit there are paged. "
            "Default: what is free, less a headroom.",
        ),
    ] = None,
    misses: Annotated[
        Misses,
        typer.Option(
            help="Experts that the GPU lacks: copy them there, compute where they are, or half of each; "
            "auto is what bench found fastest here, else fetch."
        ),
    ] = "auto",
    gpu_kernels: GpuKernelsOption = "auto",
    cuda_graphs: Annotated[
        CudaGraphs,
        typer.Option(
            help="Record what a token computes on a GPU beside experts, and replay it; auto is off."
        ),
    ] = "auto",
    small_below: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            max=1.0,
            help="Serve experts of less router weight than X that are not in memory by the small pages that "
            "a checkpoint made with --dual has. Answers change a little.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/chat-json.md).")
    ] = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is whole.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show tokens, seconds and memory after each answer.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the chat to FILE at the end.")
    ] = None,
    load: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with a chat written by --save.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write which experts tokens chose to FILE, for bench."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Ask about images and text: once with -p or a pipe, otherwise in a chat.

    The answer goes to stdout, everything else to stderr.
    """
    del debug  # Acted on by main, which is where errors arrive.
    options = ChatOptions(
        model=model,
        prompt=prompt,
        images=tuple(image or ()),
        interactive=interactive,
        system=system,
        max_tokens=max_tokens,
        context_size=ctx_size,
        temperature=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        think=think,
        think_budget=think_budget,
        hide_thinking=hide_thinking,
        device=device,
        dtype=dtype,
        kv_dtype=kv_dtype,
        threads=threads,
        ram=ram,
        reserve=reserve,
        vram=vram,
        misses=misses,
        gpu_kernels=gpu_kernels,
        cuda_graphs=cuda_graphs,
        small_below=small_below,
        as_json=as_json,
        stream=not no_stream,
        stats=stats,
        save=save,
        load=load,
        trace=trace,
    )
    _run(options, context.ensure_object(Invocation))


def _run(options: ChatOptions, invocation: Invocation) -> None:
    """The steps of the command, cheapest check first: the weights come last."""
    from ernie_cli import chat_json, images, interactive, one_shot, opening
    from ernie_cli.chat_checks import check_options
    from ernie_cli.chat_request import read_request
    from ernie_cli.console import Console

    if options.as_json:
        invocation.json_object = chat_json.empty_object(options.model)
    check_options(options)
    request = read_request(
        options.prompt, options.images, interactive=options.interactive, as_json=options.as_json
    )
    console = Console(quiet=options.as_json)
    opened = images.open_given_images(request.images, sys.stdin.buffer if sys.stdin is not None else None)
    files = opening.find_model(options.model)
    reports = opening.check_prompt(options, files, request.prompt or "", opened)
    if request.prompt is None or options.interactive:
        interactive.run(options, files, console, opened, request.prompt)
        return
    images.show_reports(reports, opened, console)
    if invocation.json_object is not None:
        invocation.json_object["images"] = chat_json.image_list(reports)
    chat = opening.open_chat(options, files, console)
    with opening.trace_written(options, chat, console):
        one_shot.run(chat, options, console, request.prompt, opened, invocation)
