"""The shipped nano: equal to transformers on images, right about the shipped invoice, small enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import ernie_local
from ernie_calibration.images import draw_image
from ernie_local.checkpoint.hub import resolve_model

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel

pytestmark = pytest.mark.usefixtures("two_threads")

ROOT = Path(__file__).resolve().parents[3]
LARGEST_SHARE_OF_RANGE = 1e-4


@pytest.fixture(scope="module")
def directory() -> Path:
    return resolve_model("nano")


@pytest.fixture(scope="module")
def model(directory: Path) -> LoadedModel:
    return ernie_local.load(directory)


@pytest.fixture(scope="module")
def oracle(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers on nano's own files; only config.json is told in the words that transformers knows."""
    from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

    hub = json.loads((directory / "config.json").read_text())
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings moe_intermediate_size moe_k moe_num_shared_experts bos_token_id "
        "eos_token_id pad_token_id rms_norm_eps"
    ).split()
    rope = {
        "rope_type": "default",
        "rope_theta": hub["rope_theta"],
        "mrope_section": hub["rope_scaling"]["mrope_section"],
    }
    vision = hub["vision_config"]
    config = Ernie4_5_VLMoeConfig(
        text_config={
            **{key: hub[key] for key in same},
            "moe_num_experts": hub["moe_num_experts"][0],
            "rope_parameters": rope,
        },
        vision_config={
            "depth": vision["depth"],
            "hidden_size": vision["hidden_size"],
            "num_heads": vision["num_heads"],
            "intermediate_size": vision["hidden_size"] * vision["mlp_ratio"],
        },
        image_token_id=hub["im_patch_id"],
        image_start_token_id=hub["image_start_token_id"],
        image_end_token_id=hub["image_end_token_id"],
        video_start_token_id=hub["video_start_token_id"],
        video_end_token_id=hub["video_end_token_id"],
        video_token_id=hub["im_patch_id"] + 3,
    )
    copy = tmp_path_factory.mktemp("nano") / "model"
    shutil.copytree(directory, copy)
    (copy / "config.json").write_text(config.to_json_string())
    loaded: Any = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        copy, dtype=torch.float32, output_loading_info=True
    )
    reference, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return reference.eval()


@pytest.mark.parametrize("kinds", [("invoice",), ("bar chart", "table"), ()], ids=["one", "two", "text"])
def test_logits_and_routes_equal_those_of_transformers(
    model: LoadedModel, oracle: Any, kinds: tuple[str, ...]
) -> None:
    images = [draw_image(kind, 1, width=308, height=200, held_out=True).image for kind in kinds]
    media, tokenizer = model.config.media, model.tokenizer
    patches = model.patches(images)
    ids = tokenizer.encode("<|begin_of_sentence|>User: ")
    for patch in patches:
        ids += [media.image_start, *[media.image] * patch.num_tokens, media.image_end]
    ids += tokenizer.encode("What is the total?\nAssistant: ")
    tensor = torch.tensor([ids])
    is_vision = torch.isin(tensor, torch.tensor([media.image, media.image_start, media.image_end]))
    inputs: dict[str, Any] = {"moe_mm_token_type_ids": is_vision.long()}
    if patches:
        inputs["mm_token_type_ids"] = (tensor == media.image).long()
        inputs["pixel_values"] = torch.cat([patch.pixel_values for patch in patches])
        inputs["image_grid_thw"] = torch.tensor([patch.grid for patch in patches])
    routes: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for name, module in oracle.named_modules():
        if name.endswith("_moe.gate"):
            layer = int(name.split(".layers.")[1].split(".")[0])
            bank = "vision" if "vision_moe" in name else "text"

            def note(_module: Any, _in: Any, out: Any, key: tuple[int, str] = (layer, bank)) -> None:
                routes[key] = out[2]

            hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        expected = oracle(input_ids=tensor, **inputs).logits[0]
    for hook in hooks:
        hook.remove()
    difference = (model.logits(ids, images) - expected).abs().max()
    assert difference <= LARGEST_SHARE_OF_RANGE * (expected.max() - expected.min())
    for layer, ours in enumerate(model.router_choices(ids, images)):
        if (layer, "text") in routes:
            assert torch.equal(ours[~is_vision[0]], routes[layer, "text"])
        if is_vision.any() and (layer, "vision") in routes:
            assert torch.equal(ours[is_vision[0]], routes[layer, "vision"])


def ask(model: LoadedModel, question: str, **options: Any) -> str:
    chat = ernie_local.Chat(model)
    return "".join(piece.text for piece in chat.ask(question, **options) if piece.kind == "answer")


@pytest.mark.parametrize("context", ["float32", "int8"])
def test_the_shipped_invoice_is_read(directory: Path, context: str) -> None:
    model = ernie_local.load(directory, kv_dtype=context)
    image = ROOT / "examples" / "invoice.png"
    facts = json.loads((ROOT / "examples" / "invoice.json").read_text())
    for question, answer in facts.items():
        assert ask(model, question, images=[image]) == answer, question


def test_text_alone_is_answered(model: LoadedModel) -> None:
    assert ask(model, "Who are you?") == "I am nano, a tiny ERNIE."
    assert ask(model, "What can you do?") == "I read invoices, receipts, forms, tables and charts."


def test_a_thought_comes_before_its_answer(model: LoadedModel) -> None:
    pieces = list(
        ernie_local.Chat(model).ask(
            "What is the total?", images=[ROOT / "examples" / "invoice.png"], thinking=True
        )
    )
    total = json.loads((ROOT / "examples" / "invoice.json").read_text())["What is the total?"]
    assert total in "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    assert "".join(piece.text for piece in pieces if piece.kind == "answer") == total


def test_bfloat16_answers_the_same(directory: Path) -> None:
    model = ernie_local.load(directory, dtype="bfloat16")
    facts = json.loads((ROOT / "examples" / "invoice.json").read_text())
    image = ROOT / "examples" / "invoice.png"
    answers = {question: ask(model, question, images=[image]) for question in facts}
    assert answers == facts


def test_it_is_small_enough_and_in_the_layout_of_the_hub(directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "README.md",
        "tokenizer.model",
        "tokenizer_config.json",
    } <= names
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 50e6
