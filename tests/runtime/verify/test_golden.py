"""Golden answers: a model meets them, or it is told where it parts from them and what to suspect."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ernie_local
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.errors import ModelUnusable
from ernie_local.loading import LoadedModel
from ernie_local.media.processor import image_to_patches
from ernie_local.model_files import find_model_files
from ernie_local.verify.golden import GoldenOutcome, compare_golden, suspicion
from ernie_local.verify.golden_file import GoldenPrompt, GoldenVideo, find_golden

INVOICE = Path(__file__).parents[3] / "examples" / "invoice.png"
NUM_IDS = 4
# How each question is written, up to the places of images, as nano's template has it.
IMAGE, START, END, VIDEO_START, VIDEO_END = 7, 8, 9, 11, 12


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    """The model in float32."""
    return ernie_local.load("nano", context_size=1024)


def greedy_ids(model: LoadedModel, token_ids: list[int], patches: list[Any], count: int) -> list[int]:
    """The slow way: the whole prompt again for each token."""
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(model.logits([*token_ids, *chosen], patches)[-1].argmax()))
    return chosen


@pytest.fixture(scope="module")
def golden_nano(nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with a golden.json whose ids were computed without the code under test. Not to be written to."""
    directory = Path(shutil.copytree(NANO_DIRECTORY, tmp_path_factory.mktemp("golden") / "nano"))
    with Image.open(INVOICE) as opened:
        picture = opened.convert("RGB")
    picture.save(directory / "benchmark.jpg", quality=95)
    with Image.open(directory / "benchmark.jpg") as saved:
        shown = image_to_patches(saved.convert("RGB").resize((308, 196), 3), nano.image_processor)
    limits = replace(nano.image_processor, min_pixels=3136, max_pixels=3136)
    frames = [
        image_to_patches(Image.new("RGB", (32, 32), colour), limits) for colour in ((9, 9, 9), (200, 0, 0))
    ]
    video = replace(
        frames[0],
        pixel_values=torch.cat([frame.pixel_values for frame in frames]),
        grid=(2, 4, 4),
    )
    encode = nano.tokenizer.encode
    begin, think, think_end = (
        nano.tokenizer.encode(tag, allow_special=True)
        for tag in ("<|begin_of_sentence|>", "<think>", "</think>")
    )
    closed = "\nAssistant: "
    thought = [*think, *encode("\n\n"), *think_end, *encode("\n\n")]
    spoken = [*begin, *encode(f"User: What is the total?{closed}"), *thought]
    seen = [*begin, *encode("User: What is the total?Picture 1:"), START, *[IMAGE] * shown.num_tokens, END]
    seen += [*encode(closed), *thought]
    moving = [*begin, *encode("User: Video 1:"), VIDEO_START, *[IMAGE] * 4, VIDEO_END]
    moving += [*encode(f"What is it?{closed}"), *thought]
    prompts = [
        {"name": "text", "content": ["What is the total?"], "ids": greedy_ids(nano, spoken, [], NUM_IDS)},
        {
            "name": "image",
            "content": ["What is the total?", {"image": "benchmark.jpg", "size": [308, 196]}],
            "ids": greedy_ids(nano, seen, [shown], NUM_IDS),
        },
        {
            "name": "video",
            "content": [
                {"frames": [[9, 9, 9], [200, 0, 0]], "size": [32, 32], "pixels": 3136},
                "What is it?",
            ],
            "ids": greedy_ids(nano, moving, [video], NUM_IDS),
        },
    ]
    (directory / "golden.json").write_text(
        json.dumps({"source": "computed by hand", "thinking": False, "prompts": prompts})
    )
    return directory


def test_text_image_and_video_match(golden_nano: Path) -> None:
    model = ernie_local.load(golden_nano, context_size=1024)
    outcomes = list(compare_golden(model, find_golden(model.files)))
    assert [(one.name, one.agreed, one.first_other) for one in outcomes] == [
        (name, NUM_IDS, None) for name in ("text", "image", "video")
    ]
    assert all(one.is_match for one in outcomes)
    assert suspicion(outcomes, is_quantized=False) is None


def test_the_first_other_id_is_told(golden_nano: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(golden_nano, tmp_path / "nano"))
    golden = json.loads((directory / "golden.json").read_text())
    right = golden["prompts"][1]["ids"][2]
    golden["prompts"][1]["ids"][2] = 301
    (directory / "golden.json").write_text(json.dumps(golden))
    model = ernie_local.load(directory, context_size=1024)
    outcomes = list(compare_golden(model, find_golden(model.files)))
    text, image, _ = outcomes
    assert text.is_match
    assert (image.first_other, image.is_match) == (2, False)
    assert image.chosen == model.tokenizer.decode([right])
    assert image.expected == model.tokenizer.decode([301])
    assert image.gap > 0.25
    assert "image" in str(suspicion(outcomes, is_quantized=False))
    assert "precision" in str(suspicion(outcomes, is_quantized=True))


def test_a_missing_image_is_skipped_by_name(golden_nano: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(golden_nano, tmp_path / "nano"))
    (directory / "benchmark.jpg").unlink()
    model = ernie_local.load(directory, context_size=1024)
    outcomes = {one.name: one for one in compare_golden(model, find_golden(model.files))}
    assert "benchmark.jpg is not there" in str(outcomes["image"].skipped)
    assert not outcomes["image"].is_match
    assert outcomes["video"].is_match


def test_suspicion_follows_what_parts() -> None:
    match = GoldenOutcome("the first", "text", 8, agreed=8)
    tie = GoldenOutcome("the second", "video", 8, agreed=7, first_other=3, gap=0.1)
    far = replace(tie, gap=4.0)
    assert "rounding" in str(suspicion([match, tie], is_quantized=False))
    assert "video" in str(suspicion([match, far], is_quantized=False))
    assert "tokenizer" in str(suspicion([replace(far, kind="text"), far], is_quantized=False))


def test_nano_has_none(nano: LoadedModel) -> None:
    with pytest.raises(ModelUnusable, match="no golden answers"):
        find_golden(nano.files)


def test_the_published_ones_are_those_of_thinking_weights(tmp_path: Path) -> None:
    sizes = Path(ernie_local.__file__).parent / "planner" / "ernie-4.5-vl-28b-a3b.json"
    shutil.copy(sizes, tmp_path / "config.json")
    with pytest.raises(ModelUnusable, match="a pt model of 28 layers of width 2560"):
        find_golden(find_model_files(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("<tool_list>")
    golden = find_golden(find_model_files(tmp_path))
    assert [prompt.name for prompt in golden.prompts] == ["text", "image", "video"]
    assert golden.thinking
    video = golden.prompts[2]
    assert video.content[0] == GoldenVideo(((40, 120, 200), (120, 120, 140)), (32, 32), 3136)
    assert golden.prompts[0].token_ids[:3] == (3843, 5971, 94036)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": []}, "prompts is an empty list"),
        ({"source": 3}, "source is 3"),
        ({"prompts": [{"name": "a", "content": ["b"], "ids": []}]}, "ids has 0 ids"),
        ({"prompts": [{"name": "a", "content": ["b"], "ids": [503]}]}, "below 503"),
        ({"prompts": [{"name": "a", "content": ["b"], "ids": [4], "more_experts": 1}]}, "more_experts"),
        ({"prompts": ["a"]}, "an object"),
        *(
            ({"prompts": [{"name": "a", "content": [{"image": name, "size": [1, 1]}], "ids": [4]}]}, "image")
            for name in ("../x", "..", "a\0b", "x" * 256)
        ),
        ({"prompts": [{"name": "a", "content": [{"image": "x", "size": [1, 9999]}], "ids": [4]}]}, "size"),
        ({"prompts": [{"name": "a", "content": [{"image": "x", "size": [0, 9]}], "ids": [4]}]}, "size"),
        (
            {
                "prompts": [
                    {
                        "name": "a",
                        "content": [{"frames": [[1, 2, 3]], "size": [1, 1], "pixels": 9}],
                        "ids": [4],
                    }
                ]
            },
            "frames has 1",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    golden_nano: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    directory = Path(shutil.copytree(golden_nano, tmp_path / "nano"))
    golden = json.loads((directory / "golden.json").read_text()) | change
    (directory / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(ModelUnusable, match=named):
        find_golden(find_model_files(directory))


def test_parts_keep_their_order(golden_nano: Path) -> None:
    prompt = find_golden(find_model_files(golden_nano)).prompts[1]
    assert isinstance(prompt, GoldenPrompt)
    assert prompt.content[0] == "What is the total?"
