"""nano with packed weights: the kernels' int8 activations change none of its answers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import ernie_local
from ernie_calibration.images import draw_image
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.kernels import native
from ernie_local.loading import LoadedModel
from tests.plain_export import export_plainly

pytestmark = pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")


def pack_model(out: Path, experts_format: str, dense_format: str) -> LoadedModel:
    """nano rounded to nearest, but for its embedding and its vision tower."""
    choice = FormatChoice(experts_format, dense_format, embedding=None, vision=None)
    export_plainly(NANO_DIRECTORY, out, format_tables(read_config(NANO_DIRECTORY), choice))
    return ernie_local.load(out, kv_dtype="float32")


@pytest.fixture(scope="module", params=[("w4", "w8"), ("w2l", "w4")], ids="-".join)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return pack_model(tmp_path_factory.mktemp("packed"), *request.param)


def test_answers_are_those_of_exact_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 4 bits. Plain rounding to 2 bits leaves letters so near a tie that int8 decides some."""
    packed = pack_model(tmp_path, "w4", "w8")
    if native.native_module() is None:
        pytest.skip("the native module was not built here")
    kinds = ("invoice", "receipt", "form", "table", "bar chart", "line chart")
    asked = [
        (question.text, image.image)
        for seed, kind in enumerate(kinds)
        for image in [draw_image(kind, 900 + seed, width=308, height=200, held_out=True)]
        for question in image.questions[:2]
    ]
    fast = [answer(packed, *each) for each in asked]
    monkeypatch.setattr(native, "_find", lambda: (None, "to compute with exact activations"))
    assert [answer(packed, *each) for each in asked] == fast


def answer(model: LoadedModel, question: str, image: object) -> str:
    chat = ernie_local.Chat(model)
    pieces = chat.ask(question, images=[image], max_tokens=20)  # type: ignore[list-item]
    return "".join(piece.text for piece in pieces if piece.kind == "answer")


def test_logits_are_close_to_those_of_exact_activations(
    packed: LoadedModel, monkeypatch: pytest.MonkeyPatch, native_kernels: ModuleType
) -> None:
    ids = packed.tokenizer.encode("<|begin_of_sentence|>User: What is 3 plus 4?\nAssistant: ")
    fast = packed.logits(ids)
    monkeypatch.setattr(native, "_find", lambda: (None, "to compute with exact activations"))
    exact = packed.logits(ids)
    assert (fast - exact).norm() <= 0.05 * exact.norm()
