"""Patches against the published processor, bit for bit, and the reading of its settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeImageProcessorPil as PublishedProcessor,
)
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    smart_resize as published_resize,
)

from ernie_local.config import VisionConfig
from ernie_local.errors import InputUnreadable, ModelUnusable, UsageError
from ernie_local.media.image_size import measure_image, smart_resize
from ernie_local.media.patches import Patches
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import ImageProcessorConfig, read_processor_config, with_max_pixels
from ernie_local.planner.model_size import published_model
from tests.published_files import (
    PADDLE_PREPROCESSOR,
    PREPROCESSOR,
    TINY_RANDOM_PREPROCESSOR,
    TINY_RANDOM_PROCESSOR,
)

VISION = VisionConfig(
    depth=2,
    hidden_size=32,
    num_heads=2,
    intermediate_size=64,
    in_channels=3,
    patch_size=14,
    spatial_merge_size=2,
    temporal_merge_size=2,
    layer_norm_eps=1e-6,
    rope_theta=10000.0,
    hidden_act="quick_gelu",
)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def published(image: Image.Image, config: ImageProcessorConfig) -> tuple[torch.Tensor, tuple[int, ...]]:
    processor = PublishedProcessor(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=config.patch_size,
        merge_size=config.merge_size,
        image_mean=list(config.mean),
        image_std=list(config.std),
        rescale_factor=config.rescale_factor,
    )
    output = processor(images=[image], return_tensors="pt")
    return output.pixel_values, tuple(output.image_grid_thw[0].tolist())


def assert_equal_to_published(image: Image.Image, config: ImageProcessorConfig) -> Patches:
    patches = image_to_patches(image, config)
    values, grid = published(image, config)
    assert patches.grid == grid
    assert patches.pixel_values.dtype == torch.float32
    assert torch.equal(patches.pixel_values, values)
    return patches


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    max_pixels=st.sampled_from([28 * 28, 56 * 56, 112 * 84, 28 * 28 * 6177]),
    seed=st.integers(0, 2**16),
)
def test_random_sizes_equal_the_published_processor(
    width: int, height: int, max_pixels: int, seed: int
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    config = ImageProcessorConfig(min_pixels=min(56 * 56, max_pixels), max_pixels=max_pixels)
    assert_equal_to_published(noise(width, height, seed), config)


@settings(max_examples=20, deadline=None)
@given(
    patch_size=st.sampled_from([4, 8, 14, 16]),
    merge_size=st.integers(1, 3),
    mean=st.floats(-1, 1),
    std=st.floats(0.1, 2),
    rescale_factor=st.sampled_from([1 / 255, 0.00392, 1.0]),
)
def test_other_settings_equal_the_published_processor(
    patch_size: int, merge_size: int, mean: float, std: float, rescale_factor: float
) -> None:
    config = ImageProcessorConfig(
        3136, 12544, patch_size, merge_size, (mean, 0.5, 0.4), (std, 0.2, 0.3), rescale_factor
    )
    assert_equal_to_published(noise(90, 61), config)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 200), (200, 1), (3, 600), (13, 13), (14, 14), (28, 28), (41, 43), (1000, 700), (2600, 1900)],
)
def test_borders_equal_the_published_processor(size: tuple[int, int]) -> None:
    patches = assert_equal_to_published(noise(*size), ImageProcessorConfig())
    assert patches.original_size == size
    assert patches.num_tokens == patches.grid[1] * patches.grid[2] // 4
    assert patches.resized_size == (14 * patches.grid[2], 14 * patches.grid[1])


@pytest.mark.parametrize(
    ("width", "height", "resized", "num_tokens"),
    [
        (1920, 1080, (1932, 1092), 2691),
        (3840, 2160, (2912, 1624), 6032),
        (448, 448, (448, 448), 256),
        (4000, 3000, (2520, 1904), 6120),
        (1000, 10, (560, 28), 20),
    ],
)
def test_sizes_of_the_reference(width: int, height: int, resized: tuple[int, int], num_tokens: int) -> None:
    new_height, new_width = smart_resize(height, width, 28, 56 * 56, 28 * 28 * 6177)
    assert (new_width, new_height) == resized
    assert new_width * new_height // 28**2 == num_tokens


def test_a_patch_holds_channels_then_rows_and_windows_are_neighbours() -> None:
    """A readable second opinion beside the oracle: each value is the number of its place."""
    height, width = 56, 56
    codes = np.zeros((height, width, 3), dtype=np.uint8)
    codes[14:28, 28:42, 1] = 200  # green, second patch row, third patch column
    config = ImageProcessorConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rescale_factor=1.0)
    values = image_to_patches(Image.fromarray(codes), config).pixel_values
    # Window (0, 1) holds patches 4..7; row 1, column 0 in it is number 4 + 2.
    (lit,) = torch.unique(values.nonzero()[:, 0]).tolist()
    assert lit == 6
    assert values[6, :196].max() == 0
    assert (values[6, 196:392] == 200).all()


def test_a_strip_over_200_to_1_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputUnreadable, match=r"201 x 1 pixels, one side 201.0 times the other, at most 200"):
        image_to_patches(noise(201, 1), ImageProcessorConfig())


def test_a_image_that_is_not_rgb_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not mode 'L'"):
        image_to_patches(Image.new("L", (30, 30)), ImageProcessorConfig())


@pytest.mark.parametrize(
    ("rows", "grid", "tokens"), [(16, (1, 4, 5), 4), (16, (1, 4, 4), 5), (0, (1, 0, 4), 1)]
)
def test_patches_that_contradict_themselves_are_refused(
    rows: int, grid: tuple[int, int, int], tokens: int
) -> None:
    with pytest.raises(ValueError, match=r"do not fit the grid|cannot be shared out"):
        Patches(torch.zeros(rows, 588), grid, (1, 1), (1, 1), tokens)


def write(directory: Path, name: str, content: object) -> None:
    (directory / name).write_text(json.dumps(content))


def test_a_directory_without_settings_gives_the_published_defaults(tmp_path: Path) -> None:
    assert read_processor_config(tmp_path, VISION) == ImageProcessorConfig()
    defaults = PublishedProcessor()
    assert ImageProcessorConfig() == ImageProcessorConfig(
        min_pixels=defaults.size["shortest_edge"],
        max_pixels=defaults.size["longest_edge"],
        patch_size=defaults.patch_size,
        merge_size=defaults.merge_size,
        rescale_factor=defaults.rescale_factor,
    )
    assert list(ImageProcessorConfig().mean) == list(defaults.image_mean)
    assert list(ImageProcessorConfig().std) == list(defaults.image_std)
    other = replace(VISION, patch_size=8, spatial_merge_size=3)
    assert read_processor_config(tmp_path, other) == ImageProcessorConfig(patch_size=8, merge_size=3)


def test_settings_that_transformers_saved_are_read(tmp_path: Path) -> None:
    saved = PublishedProcessor(size={"shortest_edge": 3136, "longest_edge": 9408}, image_mean=[0.1, 0.2, 0.3])
    saved.save_pretrained(tmp_path)
    config = read_processor_config(tmp_path, VISION)
    assert config == ImageProcessorConfig(max_pixels=9408, mean=(0.1, 0.2, 0.3))
    # One file with everything in it goes before the older one.
    write(
        tmp_path,
        "processor_config.json",
        {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 784 * 8}}},
    )
    assert read_processor_config(tmp_path, VISION).max_pixels == 784 * 8
    write(tmp_path, "processor_config.json", {"processor_class": "Ernie4_5_VLMoeProcessor"})
    assert read_processor_config(tmp_path, VISION) == config


@pytest.mark.parametrize(
    "hub",
    [
        {"min_pixels": 6272, "max_pixels": 9408},
        {"min_pixels": 6272, "max_pixels": 9408, "size": {"height": 224, "width": 224}, "crop_size": 224},
        {"min_pixels": 6272, "max_pixels": 9408, "temporal_patch_size": 2, "video_max_pixels": 937664},
        {"min_pixels": 6272, "max_pixels": 9408, "image_processor_type": "X", "auto_map": {}, "resample": 3},
        {"min_pixels": 6272, "max_pixels": 9408, "image_mean": None, "rescale_factor": None},
        {"min_pixels": 6272, "max_pixels": 9408, "size": {"shortest_edge": 6272, "longest_edge": 9408}},
    ],
)
def test_settings_with_the_keys_of_the_hub_are_read(tmp_path: Path, hub: dict[str, Any]) -> None:
    write(tmp_path, "preprocessor_config.json", hub)
    assert read_processor_config(tmp_path, VISION) == ImageProcessorConfig(min_pixels=6272, max_pixels=9408)


@pytest.mark.parametrize(
    ("changes", "max_pixels"),
    [
        ({}, 4842768),
        ({"max_pixels": 4816895}, 4816895),
        ({"max_pixels": 4842768}, 4842768),
        ({"max_pixels": 28 * 28 * 1280}, 28 * 28 * 1280),
        ({"max_pixels": None, "size": None}, 4842768),
        ({"size": {"max_pixels": 4816896, "min_pixels": 3136}}, 4842768),
        ({"size": {"max_pixels": 9408, "min_pixels": 3136}}, 9408),
        # transformers writes and obeys this one.
        ({"size": {"shortest_edge": 3136, "longest_edge": 4816896}}, 4816896),
        ({"size": {"shortest_edge": 3136, "longest_edge": 4842768}}, 4842768),
    ],
)
def test_the_published_limit_is_that_of_the_published_code_and_any_other_counts(
    tmp_path: Path, changes: dict[str, Any], max_pixels: int
) -> None:
    write(tmp_path, "preprocessor_config.json", PREPROCESSOR | changes)
    config = read_processor_config(tmp_path, VISION)
    assert config == ImageProcessorConfig(max_pixels=max_pixels)
    said = (PREPROCESSOR | changes)["max_pixels"]
    assert (config.note is not None) == (said == 4816896 != max_pixels)


@pytest.mark.parametrize("raw", [PREPROCESSOR, PADDLE_PREPROCESSOR, TINY_RANDOM_PREPROCESSOR])
def test_published_settings_are_those_of_transformers(tmp_path: Path, raw: dict[str, Any]) -> None:
    write(tmp_path, "preprocessor_config.json", raw)
    config = read_processor_config(tmp_path, VISION)
    assert config == ImageProcessorConfig()
    assert config.note is not None
    assert "up to 4842768 pixels" in config.note
    assert "max_pixels 4816896 in" in config.note


def test_limits_beside_the_processor_class_count(tmp_path: Path) -> None:
    write(tmp_path, "processor_config.json", TINY_RANDOM_PROCESSOR)
    assert read_processor_config(tmp_path, VISION) == ImageProcessorConfig()
    assert read_processor_config(tmp_path, VISION).has_limits
    write(tmp_path, "preprocessor_config.json", TINY_RANDOM_PREPROCESSOR)
    assert read_processor_config(tmp_path, VISION) == ImageProcessorConfig()
    small = {"image_max_pixels": 9408, "image_min_pixels": 3136}
    write(tmp_path, "processor_config.json", TINY_RANDOM_PROCESSOR | small)
    assert read_processor_config(tmp_path, VISION).max_pixels == 9408
    write(tmp_path, "preprocessor_config.json", TINY_RANDOM_PREPROCESSOR | {"max_pixels": 12544})
    with pytest.raises(ModelUnusable, match=r"max_pixels = 12544 .*\n.*image_max_pixels says 9408"):
        read_processor_config(tmp_path, VISION)


@pytest.mark.parametrize(
    ("width", "height", "resized", "by_the_file"),
    [
        (4000, 3000, (2520, 1904), (2520, 1876)),
        (4032, 3024, (2520, 1904), (2520, 1876)),
        (2480, 3508, (1848, 2604), (1820, 2604)),
        (2550, 3300, (1932, 2492), (1904, 2492)),
        (1920, 1080, (1932, 1092), (1932, 1092)),
        (3840, 2160, (2912, 1624), (2912, 1624)),
        (3000, 2000, (2688, 1792), (2688, 1792)),
    ],
)
def test_large_images_get_the_size_of_the_published_code(
    tmp_path: Path, width: int, height: int, resized: tuple[int, int], by_the_file: tuple[int, int]
) -> None:
    def of_transformers(max_pixels: int) -> tuple[int, int]:
        new_height, new_width = published_resize(height, width, 28, 3136, max_pixels)
        return new_width, new_height

    assert of_transformers(PublishedProcessor().size["longest_edge"]) == resized
    assert of_transformers(PREPROCESSOR["max_pixels"]) == by_the_file
    write(tmp_path, "preprocessor_config.json", PREPROCESSOR)
    config = read_processor_config(tmp_path, VISION)
    assert measure_image("photo", (width, height), config).resized_size == resized
    assert measure_image("photo", (width, height), published_model().processor).resized_size == resized


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"do_resize": False}, "do_resize = false"),
        ({"do_normalize": False}, "do_normalize = false"),
        ({"do_center_crop": True}, "do_center_crop = true"),
        ({"resample": 2}, "resample = 2.*\n.*3 \\(bicubic\\)"),
        ({"temporal_patch_size": 3}, "temporal_patch_size = 3"),
        (
            {"size": {"shortest_edge": 3136, "longest_edge": 9408}, "temporal_patch_size": 2},
            "temporal_patch_size",
        ),
        ({"patch_size": 16}, "patch_size = 16.*\n.*config.json says 14"),
        ({"merge_size": 1}, "merge_size = 1.*\n.*config.json says 2"),
        (
            {"size": {"height": 224, "width": 224}},
            "size = an object.*\nneither size.shortest_edge nor min_pixels",
        ),
        ({"size": 224}, "size = 224"),
        ({"min_pixels": 0}, "min_pixels = 0"),
        ({"min_pixels": 9408, "max_pixels": 6272}, "min_pixels = 9408.*\n.*max_pixels 6272"),
        ({"min_pixels": 10**12, "max_pixels": 10**12}, "min_pixels = 1000000000000"),
        ({"max_pixels": True}, "max_pixels = true"),
        (
            {"max_pixels": 9408, "size": {"shortest_edge": 3136, "longest_edge": 6272}},
            "max_pixels = 9408.*\n.*6272",
        ),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"image_std": "half"}, "image_std = 'half'"),
        ({"rescale_factor": 0}, "rescale_factor = 0"),
        ({"do_sharpen": True}, "do_sharpen = true"),
        ({"patch_overlap": 2}, "patch_overlap = 2"),
    ],
)
def test_settings_that_ask_for_another_processor_are_refused_by_name(
    tmp_path: Path, raw: dict[str, Any], message: str
) -> None:
    write(tmp_path, "preprocessor_config.json", raw)
    with pytest.raises(ModelUnusable, match=f"preprocessor_config.json: .*{message}"):
        read_processor_config(tmp_path, VISION)


@pytest.mark.parametrize("section", [[], "X", 3, False])
def test_an_image_processor_that_is_no_object_is_refused(tmp_path: Path, section: object) -> None:
    write(tmp_path, "processor_config.json", {"image_processor": section})
    with pytest.raises(ModelUnusable, match=r"processor_config\.json: image_processor = "):
        read_processor_config(tmp_path, VISION)


@pytest.mark.parametrize("content", ["{", "[1]", "", "\udcff"])
def test_a_file_that_is_not_settings_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelUnusable, match=r"preprocessor_config\.json"):
        read_processor_config(tmp_path, VISION)


def test_a_tower_of_other_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="in_channels = 1, but images have 3"):
        read_processor_config(tmp_path, replace(VISION, in_channels=1))


@pytest.mark.parametrize(
    ("max_pixels", "resized"), [(3136, (56, 28)), (1_000_000, (1148, 840)), (28 * 28 * 6144, (2520, 1876))]
)
def test_a_chosen_limit_replaces_that_of_the_files(
    tmp_path: Path, max_pixels: int, resized: tuple[int, int]
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    processor = with_max_pixels(read_processor_config(tmp_path, VISION), max_pixels)
    assert measure_image("photo", (4000, 3000), processor).resized_size == resized
    assert published_resize(3000, 4000, 28, 3136, max_pixels) == resized[::-1]
    assert processor.note is None


@pytest.mark.parametrize("max_pixels", [1, 3135, 28 * 28 * 16384 + 1])
def test_a_limit_that_cannot_be_is_refused(max_pixels: int) -> None:
    with pytest.raises(UsageError, match=f"is {max_pixels}, 3136 to 12845056 are possible"):
        with_max_pixels(ImageProcessorConfig(), max_pixels)


def test_a_chosen_limit_makes_up_for_a_missing_file() -> None:
    faulty = ImageProcessorConfig(has_limits=False, fault="the published limits are too large")
    with_max_pixels(faulty, 100_000).check()
    with pytest.raises(ModelUnusable):
        with_max_pixels(faulty, None).check()
