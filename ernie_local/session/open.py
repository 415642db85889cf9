"""Opens a model for chats: checks the question against the small files first, then loads the weights.

The command line, a server and Python users call the same functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ernie_local import defaults
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.loading import LoadedModel, LoadOptions, load_model
from ernie_local.model_files import ModelFiles
from ernie_local.progress import OnProgress
from ernie_local.session.messages import ChatMedia, ChatMessage, with_instruction
from ernie_local.session.tools import Toolbox, ToolSource
from ernie_local.session.writer import ChatWriter
from ernie_local.structured import AnswerForm

if TYPE_CHECKING:
    from ernie_local.planner.profile import MachineProfile


def check_first_question(
    files: ModelFiles,
    text: str,
    images: Sequence[ChatMedia],
    *,
    system: str | None = None,
    thinking: bool | None = None,
    context_size: int | None = None,
    variant: str | None = None,
    form: AnswerForm | None = None,
    tools: Sequence[ToolSource] = (),
) -> None:
    """Try the first question before any weight is read.

    variant, tools: as of Chat. form: of the answer. DoesNotFit where the question alone fills the context,
    ModelUnusable without a tokenizer.
    """
    writer = ChatWriter(files, system, Toolbox(tools).descriptions, variant)
    told = [ChatMessage("user", (*images, text))]
    if form is not None:
        told = with_instruction(told, form.instruction)
    num_tokens = len(
        writer.prompt(
            [told[0].for_template()], writer.thinks_by_default if thinking is None else thinking
        ).token_ids
    )
    model_limit = files.config.text.max_position_embeddings
    limit = defaults.context_tokens(context_size, model_limit)
    if num_tokens < limit:
        return
    shorter = "a shorter question" + (
        f", fewer or smaller images, fewer frames, or {parameter('detail', 'auto')}" if images else ""
    )
    roomy = defaults.roomier_context(num_tokens, model_limit)
    image_tokens = sum(image.num_tokens for image in images)
    raise DoesNotFit(
        f"the question takes {num_tokens} tokens, the context has {limit}",
        f"{image_tokens} of them are for {len(images)} images and videos, and the answer needs at least 1",
        shorter if roomy is None else f"{parameter('context_size', roomy)}, or {shorter}",
    )


def open_model(
    files: ModelFiles,
    options: LoadOptions,
    profile: MachineProfile | None = None,
    on_progress: OnProgress | None = None,
    images: Iterable[ChatMedia] = (),
) -> LoadedModel:
    """Load the model; without a rule in `options`, missing experts follow the fastest one of `profile`.

    profile: what `bench` has measured on this machine. images: those of the first prompt, which the memory
    has to have room for. on_progress and errors as of `load_model`.
    """
    if profile is not None:
        options = dataclasses.replace(
            options, misses=defaults.miss_rule(options.misses, profile.best_miss_rule)
        )
    return load_model(files, options, on_progress, [image.memory_report for image in images])


def opening_notes(model: LoadedModel, options: LoadOptions) -> list[str]:
    """What a user should know of an opened model, a line each: its adapters, how spaces are read and experts
    paged, and idle options.

    Arguments are marked as by `errors.parameter`.
    """
    notes = [*model.adapter_notes, *model.files.tokenizer.notes, *model.paging_notes()]
    if model.paging is None:
        given = {
            "misses": options.misses != defaults.AUTO,
            "small_below": options.small_below is not None,
        }
        idle = [parameter(name) for name, is_given in given.items() if is_given]
        if idle:
            notes.append(f"{', '.join(idle)}: no effect, every expert is in memory")
    return notes
