"""Checks a new checkpoint before it gets its name: it is complete, has the planned size, and answers.

Its hashes.json stands for exactly the files that were checked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

import ernie_local
from ernie_calibration.images import draw_image
from ernie_calibration.texts import make_texts
from ernie_local.checkpoint.files import HASHES_FILE, write_hashes
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable, NoAnswer, UsageError, parameter
from ernie_local.loading import LoadedModel
from ernie_local.loading.build import checkpoint_weights
from ernie_local.media.patches import Patches
from ernie_local.planner.free_memory import system_memory
from ernie_local.sampling import SamplingOptions
from ernie_local.session import Chat
from ernie_local.session.writer import ChatWriter
from ernie_local.sizes import format_bytes
from ernie_local.text.template import user_message
from ernie_local.verify import verify
from ernie_local.verify.checkpoint import check_companions
from ernie_local.verify.finding import Findings
from ernie_quant.work import tell_nobody

_SIZE_SHARE = 0.01  # by which the weights may differ from the plan
_MEMORY_SHARE = 0.5  # of free memory: a larger model is not loaded for an answer
_MOST_TOKENS = 4096  # of image, question and answer
_ANSWER_TOKENS = 24
_TEXTS = 8  # the one with the shortest answer is asked about
OnNote = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """How much was read, and the answer to a question: about a drawn invoice, or without an image.

    answer: None where no question was asked; why_not_asked then says why. has_image: whether the question is
    about an image; False for a model that reads only text.
    """

    num_tensors: int
    num_pages: int
    num_bytes: int
    question: str = ""
    right_answer: str = ""
    answer: str | None = None
    why_not_asked: str = ""
    has_image: bool = True


def audit(
    directory: Path,
    source: Path,
    planned_bytes: int,
    on_note: OnNote = tell_nobody,
    most_memory: int | None = None,
) -> AuditResult:
    """Check the new checkpoint in `directory` and write its hashes.json; `on_note` gets what was not checked.

    ModelUnusable names the first fault: a tensor that is missing or there twice, a value that is not finite,
    a damaged page, weights that differ by more than 1 % from `planned_bytes`, another file that cannot be
    read although that of `source` can, scores of the next token that are not finite. most_memory: bytes that
    the model may take to answer a question, besides half of the free memory.
    """
    # A run that was killed after this point leaves it.
    (directory / HASHES_FILE).unlink(missing_ok=True)
    found_in_source = Findings()
    check_companions(source, read_config(source), found_in_source)
    for finding in found_in_source.all:
        on_note(f"not audited, the source has it too: {finding.error.what}")
    # A chat template that differs from ours is the source's.
    result = verify(directory, companions=not found_in_source.all, template=False)
    if result.findings:
        raise result.findings[0].error
    found = sum(file.num_bytes for name, file in result.hashes.items() if name.endswith(".safetensors"))
    if abs(found - planned_bytes) > _SIZE_SHARE * planned_bytes:
        raise ModelUnusable(
            f"{directory} has {found} bytes of weights, {planned_bytes} were planned",
            f"they differ by more than {_SIZE_SHARE:.0%}",
            f"report this as a defect; start again with {parameter('resume', 'never')}",
        )
    audited = AuditResult(
        result.num_tensors,
        result.num_pages,
        result.num_bytes,
        why_not_asked="the source lacks a file that a chat needs, or it cannot be read",
    )
    if not found_in_source.all:
        audited = _try_answer(directory, audited, on_note, most_memory)
    write_hashes(directory, result.hashes)
    return audited


def _try_answer(
    directory: Path, audited: AuditResult, on_note: OnNote, most_memory: int | None
) -> AuditResult:
    """Ask about one generated invoice, and note the answer, right or wrong. Returns `audited` with it.

    A model that reads only text is asked a question of a generated text.
    """
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        weight_bytes = checkpoint_weights(checkpoint, config, torch.float32).total
    room = int(_MEMORY_SHARE * system_memory().available)
    if most_memory is not None:
        room = min(room, most_memory)
    if weight_bytes > room:
        on_note(
            f"not audited: no question was asked, as the weights take {format_bytes(weight_bytes)} and "
            f"{format_bytes(room)} may be used; try it with `ernie-local chat`"
        )
        # Without the free memory: another run on the same machine writes the same report.
        needed = f"the weights take {format_bytes(weight_bytes)}, more memory than could be used"
        return replace(audited, why_not_asked=needed)
    texts = (make_texts(f"audit/{index}")[0] for index in range(_TEXTS))
    turn = min(texts, key=lambda one: len(one.answer))
    about, images, question, right_answer = "", list[Image.Image](), turn.question, turn.answer
    if config.reads_images:
        drawn = draw_image("invoice", "audit", width=308, height=200)
        about, images, first = " about an invoice", [drawn.image], drawn.questions[0]
        question, right_answer = first.text, first.answer
    context_size = min(_MOST_TOKENS, config.text.max_position_embeddings)
    model = ernie_local.load(directory, context_size=context_size)
    model.wait_until_resident()  # which checks the pages that no token of the question uses
    _check_scores(model, question, model.patches(images))
    answer = ""
    with suppress(NoAnswer):  # an untrained model may say nothing
        # Greedy whatever its generation_config.json says, so that the same weights give the same note.
        pieces = Chat(model, sampling=SamplingOptions()).ask(
            question, images=images, thinking=False, max_tokens=_ANSWER_TOKENS
        )
        answer = "".join(piece.text for piece in pieces if piece.kind == "answer")
    on_note(f"asked{about}: {question} It answers {answer!r}, right is {right_answer!r}")
    return replace(
        audited,
        question=question,
        right_answer=right_answer,
        answer=answer,
        why_not_asked="",
        has_image=config.reads_images,
    )


def _check_scores(model: LoadedModel, question: str, patches: list[Patches]) -> None:
    message = user_message(question, (image.num_tokens for image in patches))
    token_ids = ChatWriter(model.files).prompt([message], thinking=False).token_ids
    try:
        bad = (~model.logits(token_ids, patches).isfinite()).any(1)
        problem = f"scores of {int(bad.sum())} of {len(bad)} tokens are not finite" if bool(bad.any()) else ""
    except UsageError as error:  # the kernels refuse values that an earlier layer made
        problem = error.what
    if problem:
        raise ModelUnusable(
            f"{model.directory} cannot answer a question{' about an invoice' * bool(patches)}: {problem}",
            "a weight is finite, but too large to compute with",
            "ask the source the same question: if it answers, report this as a defect",
        )
