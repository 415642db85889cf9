"""nano with packed weights: the kernels' int8 activations change none of its answers."""

from __future__ import annotations

import pytest
import torch

import ernie_local
from ernie_calibration.pictures import make_picture
from ernie_local.experts.packed import PackedExperts
from ernie_local.experts.resident import ResidentExperts
from ernie_local.kernels import native
from ernie_local.loading import LoadedModel
from ernie_local.model.attention import SelfAttention
from ernie_local.model.mlp import GatedMLP
from ernie_local.model.packed_linear import PackedLinear
from ernie_local.packing import ExpertPage, find_format, pack_matrix, pack_page
from ernie_quant.rtn import round_to_nearest


def pack_model(experts_format: str, dense_format: str) -> LoadedModel:
    """nano with its routed experts, attention, shared experts and dense layer rounded and packed."""
    model = ernie_local.load("nano")
    resident = model.network.experts
    assert isinstance(resident, ResidentExperts)
    low_bit = find_format(experts_format)
    banks = {
        key: torch.stack(
            [
                pack_page(
                    ExpertPage(
                        *(
                            round_to_nearest(bank.projection(expert_id, name), low_bit)
                            for name in ("gate_proj", "up_proj", "down_proj")
                        )
                    )
                )
                for expert_id in range(len(bank.down))
            ]
        )
        for key, bank in resident.banks.items()
    }
    model.network.experts = PackedExperts(banks)
    for module in list(model.network.layers.modules()):
        if isinstance(module, SelfAttention | GatedMLP):
            for name, linear in list(module.named_children()):
                assert isinstance(linear, torch.nn.Linear)
                matrix = round_to_nearest(linear.weight, find_format(dense_format))
                packed = PackedLinear(pack_matrix(matrix), dense_format, linear.out_features)
                setattr(module, name, packed)
    return model


@pytest.fixture(scope="module", params=[("w4", "w8"), ("w2l", "w4")], ids="-".join)
def packed(request: pytest.FixtureRequest) -> LoadedModel:
    return pack_model(*request.param)


def test_answers_are_those_of_exact_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 4 bits. Plain rounding to 2 bits leaves letters so near a tie that int8 decides some."""
    packed = pack_model("w4", "w8")
    if native.native_module() is None:
        pytest.skip("the native module was not built here")
    kinds = ("invoice", "receipt", "form", "table", "bar chart", "line chart")
    asked = [
        (question.text, picture.image)
        for seed, kind in enumerate(kinds)
        for picture in [make_picture(kind, 900 + seed, width=308, height=200, held_out=True)]
        for question in picture.questions[:2]
    ]
    fast = [answer(packed, *each) for each in asked]
    monkeypatch.setattr("ernie_local.kernels.ops.native_module", lambda: None)
    monkeypatch.setattr("ernie_local.kernels.ops.warn_without_native", lambda: None)
    assert [answer(packed, *each) for each in asked] == fast


def answer(model: LoadedModel, question: str, image: object) -> str:
    chat = ernie_local.Chat(model)
    pieces = chat.ask(question, images=[image], max_tokens=20)  # type: ignore[list-item]
    return "".join(piece.text for piece in pieces if piece.kind == "answer")


def test_logits_are_close_to_those_of_exact_activations(
    packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = packed.tokenizer.encode("<|begin_of_sentence|>User: What is 3 plus 4?\nAssistant: ")
    fast = packed.logits(ids)
    monkeypatch.setattr("ernie_local.kernels.ops.native_module", lambda: None)
    monkeypatch.setattr("ernie_local.kernels.ops.warn_without_native", lambda: None)
    exact = packed.logits(ids)
    assert (fast - exact).norm() <= 0.05 * exact.norm()
