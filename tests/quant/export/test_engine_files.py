"""The code beside an export reads tokens, images and conversations as ernie-local does."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.media.image_size import smart_resize
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import CLIP_MEAN, CLIP_STD, ImageProcessorConfig
from ernie_local.model_files import ModelFiles
from ernie_local.text.sentencepiece_file import SpaceRules, read_model_file, with_space_rules
from ernie_local.text.tokenizer import ErnieTokenizer
from ernie_local.verify.templates import compare_template
from ernie_quant.engine_code.configuration_ernie4_5_vl import Ernie4_5_VLConfig
from ernie_quant.engine_code.processing_ernie4_5_vl import Ernie4_5_VLImageProcessor, resized_size
from ernie_quant.engine_code.tokenization_ernie4_5_vl import Ernie4_5_VLTokenizer
from ernie_quant.engine_files import write_engine_files
from tests.published_checkpoint import tokenizer_model

TEXTS = (
    "What is the total?\n  two  spaces é 汉 😀",
    "<|begin_of_sentence|>User: Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|> a<b>",
    "\nAssistant: <think>\n\n</think>\n\n12 345 word400 <mask:4><|LOC_7|>",
)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = Path(shutil.copytree(NANO_DIRECTORY, tmp_path_factory.mktemp("export") / "out"))
    write_engine_files(out, ModelFiles(out, read_config(out)).image_processor)
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens as the published repositories have them: most are named by special_tokens_map.json alone."""
    out = tmp_path_factory.mktemp("published")
    listed = ["<|IMAGE_PLACEHOLDER|>", "<|AUDIO_PLACEHOLDER|>", *(f"<|LOC_{n}|>" for n in range(1001))]
    (out / "tokenizer.model").write_bytes(tokenizer_model())
    (out / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": listed}))
    (out / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (out / "config.json").write_text("{}")
    write_engine_files(out, ImageProcessorConfig())
    return out


@pytest.mark.parametrize("which", ["nano", "published"])
def test_tokens_have_our_ids_and_come_back(which: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(which)
    theirs = Ernie4_5_VLTokenizer.from_pretrained(directory)
    ours = ErnieTokenizer.from_directory(directory)
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.convert_tokens_to_ids("<|IMAGE_PLACEHOLDER|>") == ours.id_of("<|IMAGE_PLACEHOLDER|>")


def test_a_space_before_each_text_can_be_left_away(published: Path) -> None:
    """As tokenizer_config.json says it; the file's own rule puts one there."""
    words = {}
    for adds in (None, False):
        read = Ernie4_5_VLTokenizer.from_pretrained(published, add_prefix_space=adds)
        words[adds] = read.tokenize("total")
    model = (published / "tokenizer.model").read_bytes()
    _, rules = read_model_file(model)
    ours = sentencepiece.SentencePieceProcessor(
        model_proto=with_space_rules(model, SpaceRules(prefix=False, removal=rules.removal))
    )
    assert words[False] == ours.encode("total", out_type=str)
    assert (words[None] != words[False]) == rules.prefix


def test_images_are_cut_as_here(nano: Path) -> None:
    theirs = Ernie4_5_VLImageProcessor.from_pretrained(nano)
    ours = ModelFiles(nano, read_config(nano)).image_processor
    draw = np.random.default_rng(0)
    for width, height in ((300, 200), (31, 500), (28, 28), (1001, 650)):
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        rows, grid = theirs.rows([image], theirs.size["min_pixels"], theirs.size["max_pixels"])
        here = image_to_patches(image, ours)
        assert grid == here.grid
        # As vLLM does afterwards.
        mean, std = (torch.tensor(value).repeat_interleave(14 * 14) for value in (CLIP_MEAN, CLIP_STD))
        torch.testing.assert_close((rows.float() / 255 - mean) / std, here.pixel_values, rtol=0, atol=2e-6)


def test_sizes_are_ours() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        short = draw.randint(1, 4000)
        width, height = short, min(draw.randint(short, 200 * short), 12_000)
        height = max(height, short)
        for size in ((width, height), (height, width)):
            made = resized_size(*size, 28, 3136, 4_842_768)
            assert made == smart_resize(size[1], size[0], 28, 3136, 4_842_768)[::-1], size
    with pytest.raises(ValueError, match="too narrow"):
        resized_size(1, 201, 28, 3136, 4_842_768)


def test_the_template_writes_what_is_asked_here(nano: Path) -> None:
    assert compare_template(nano, ErnieTokenizer.from_directory(nano)) is None


def test_the_config_has_what_files_leave_out(nano: Path) -> None:
    config = Ernie4_5_VLConfig.from_pretrained(nano)
    assert config.rope_parameters["mrope_section"] == [8, 8, 8]
    assert (config.freq_allocation, config.vision_config.hidden_size) == (8, 128)
    raw = json.loads((nano / "config.json").read_text())
    del raw["use_temporal_conv"], raw["freq_allocation"]
    published = Ernie4_5_VLConfig(**raw)
    assert published.use_temporal_conv
    assert published.freq_allocation == 20


def test_settings_lead_to_the_code(nano: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        settings = json.loads((nano / name).read_text())
        for value in settings["auto_map"].values():
            module, _, kind = (value if isinstance(value, str) else value[0]).partition(".")
            assert f"class {kind}(" in (nano / f"{module}.py").read_text()
    settings = json.loads((nano / "preprocessor_config.json").read_text())
    assert settings["max_pixels"] == 70560
    assert settings["image_std"] == list(CLIP_STD)
