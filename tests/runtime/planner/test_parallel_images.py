"""Memory planned for several conversations is enough for one that sends an image when the others are full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.media.image_size import ImageReport
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan, MemoryNeed, chat_need
from ernie_local.planner.ram import Budget, plan_cpu
from ernie_local.planner.terms import Term
from ernie_local.sizes import GIB
from tests.runtime.paged_models import build, ids, image, image_ids

CONTEXT, CHUNK, ROWS, COLUMNS = 1024, 128, 32, 28


def chat_of(parallel: int) -> ChatPlan:
    tokens = ROWS * COLUMNS
    report = ImageReport("page", (1, 1), (1, 1), patches=4 * tokens, tokens=tokens)
    return ChatPlan(CONTEXT, "float32", "float32", (report,), parallel=parallel)


def test_an_image_is_read_when_all_other_conversations_are_full(
    packed_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, chat = read_model(packed_nano), chat_of(4)
    weights = MemoryNeed.of_weights(size.config.text, size.weights(chat.item_bytes), size.paging_plan)
    need = chat_need(weights, size.config, size.processor, chat, GIB)
    model = build(packed_nano, need.paged_bytes(CHUNK, 0))
    engines = [Engine(model, CONTEXT, torch.float32, CHUNK) for _ in range(4)]
    for engine in engines[:-1]:
        engine._make_room(CONTEXT, CHUNK)  # as a prompt that fills the context does before its last chunk
    page = image(model, ROWS, COLUMNS, 1)
    # Memory for encoding is kept before; what is encoded does not matter.
    features = torch.zeros(page.num_tokens, size.config.text.hidden_size)
    monkeypatch.setattr(model, "encode_images", lambda *_: [features])
    engines[-1].prefill([*image_ids(model, page), *ids(3, 9)], [page])  # else DoesNotFit


def test_the_plan_shows_the_other_caches_while_an_image_is_encoded(packed_nano: Path) -> None:
    size = read_model(packed_nano)

    def caches(parallel: int) -> Term:
        terms = plan_cpu(size, chat_of(parallel), Budget(GIB)).memory.terms
        return next(term for term in terms if term.name == "KV cache")

    alone, four = caches(1), caches(4)
    assert alone.most.best * 3 == four.phases["vision"].best
