"""Logits and router choices of whole prompts against transformers on the same weights, float32.

The bound is the project's: the largest difference is at most 1e-4 of the range of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import ernie_local
from ernie_local.media.patches import MediaPatches, Patches, VideoPatches
from ernie_local.media.tokens import positions_3d

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel
    from tests.conftest import Layout, Oracle, OracleOutput

LARGEST_SHARE_OF_RANGE = 1e-4


def check(
    model: LoadedModel, ids: Sequence[int], images: Sequence[MediaPatches], expected: OracleOutput
) -> None:
    logits = model.logits(ids, images)
    assert logits.shape == expected.logits.shape
    assert logits.dtype == torch.float32
    difference = (logits - expected.logits).abs().max().item()
    span = (expected.logits.max() - expected.logits.min()).item()
    assert difference <= LARGEST_SHARE_OF_RANGE * span, f"{difference} of a range of {span}"
    for layer_id, (ours, theirs) in enumerate(
        zip(model.router_choices(ids, images), expected.choices, strict=True)
    ):
        assert torch.equal(ours, theirs), f"layer {layer_id}"


def prompts(oracle: Oracle) -> list[list[int | Patches]]:
    """Images first, last, adjacent, one to five of them, and none."""
    merge = oracle.config.vision.spatial_merge_size
    sizes = [(1, 1), (2, 3), (1, 4), (3, 2), (4, 4)]
    images = [oracle.image(rows * merge, columns * merge, seed) for seed, (rows, columns) in enumerate(sizes)]
    return [
        [20],
        [images[1], 7],
        [7, images[3]],
        [images[0]],
        [3, images[1], images[2], 5],
        [1, images[0], 2, images[1], 1, images[2], images[3], images[4], 6],
    ]


def check_all_prompts(oracle: Oracle, model: LoadedModel) -> None:
    for index, parts in enumerate(prompts(oracle)):
        ids, images = oracle.prompt(parts, seed=index)
        check(model, ids, images, oracle.run(ids, images))


def layouts_for(oracle: Oracle, seed: int) -> Layout:
    """Each layout in turn, as far as it can express the model."""
    text = oracle.config.text
    first = text.moe_layers.index(True) if True in text.moe_layers else len(text.moe_layers)
    irregular = text.moe_layers != tuple(layer >= first for layer in range(len(text.moe_layers)))
    explicit_head = text.head_dim * text.num_attention_heads != text.hidden_size
    if seed % 3 == 0 and not irregular and not explicit_head:
        return "hub"
    return "native" if seed % 3 == 1 else "saved"


@pytest.mark.parametrize("seed", range(12))
def test_random_models(make_random_oracle: Callable[[int], Oracle], tmp_path: Path, seed: int) -> None:
    oracle = make_random_oracle(seed)
    check_all_prompts(oracle, oracle.load(tmp_path, layouts_for(oracle, seed)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 220))
def test_more_random_models(make_random_oracle: Callable[[int], Oracle], tmp_path: Path, seed: int) -> None:
    oracle = make_random_oracle(seed)
    check_all_prompts(oracle, oracle.load(tmp_path, layouts_for(oracle, seed)))


@pytest.mark.parametrize("layout", ["hub", "saved", "native"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_gives_the_same_model(
    make_oracle: Callable[..., Oracle], tmp_path: Path, layout: Layout, tied: bool
) -> None:
    oracle = make_oracle(seed=5, tied=tied)
    oracle.save(tmp_path, layout, max_shard_size="150KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids, images = oracle.prompt([3, oracle.image(4, 4), 4])
    check(ernie_local.load(tmp_path), ids, images, oracle.run(ids, images))


@pytest.mark.parametrize(
    "types", [["sparse"] * 3, ["dense"] * 3, ["sparse", "dense", "sparse"], ["dense", "dense", "sparse"]]
)
def test_dense_and_sparse_layers_in_any_order(
    make_oracle: Callable[..., Oracle], tmp_path: Path, types: list[str]
) -> None:
    oracle = make_oracle(seed=6, text={"mlp_layer_types": types})
    ids, images = oracle.prompt([3, oracle.image(4, 4), 4])
    check(oracle.load(tmp_path, "native"), ids, images, oracle.run(ids, images))


@pytest.mark.parametrize("chunk_tokens", [1, 5, 16])
def test_chunk_boundaries_inside_images(
    tiny_oracle: Oracle, tiny_checkpoint: Path, chunk_tokens: int
) -> None:
    ids, images = tiny_oracle.prompt(prompts(tiny_oracle)[-1])
    model = ernie_local.load(tiny_checkpoint, chunk_tokens=chunk_tokens)
    check(model, ids, images, tiny_oracle.run(ids, images))


def test_adjacent_images_without_tags(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    """transformers numbers touching images as one, so it is told the positions."""
    touching = [tiny_oracle.image(4, 6, 1), tiny_oracle.image(2, 2, 2), tiny_oracle.image(6, 2, 3)]
    parts: list[int | Patches] = [2, *touching, 4]
    ids, images = tiny_oracle.prompt(parts, tags=False)
    rows: list[tuple[int, int, int]] = [(0, 0, 0), (1, 1, 1)]
    position = 2
    for height, width in [(2, 3), (1, 1), (3, 1)]:
        rows += [
            (position, position + row, position + column) for row in range(height) for column in range(width)
        ]
        position += max(height, width)
    rows += [(position + step,) * 3 for step in range(4)]
    positions = torch.tensor(rows).T
    numbered, _ = positions_3d(ids, [image.grid for image in images], tiny_oracle.config.media, 2)
    assert torch.equal(numbered, positions)
    check(tiny_model, ids, images, tiny_oracle.run(ids, images, positions))


def test_bfloat16_agrees_with_float32_on_nearly_every_first_choice(
    tiny_oracle: Oracle, tiny_checkpoint: Path, tiny_model: LoadedModel
) -> None:
    half = ernie_local.load(tiny_checkpoint, dtype="bfloat16")
    for name, parameter in half.network.named_parameters():
        assert parameter.dtype == (torch.float32 if "_router." in name else torch.bfloat16), name
    ids, images = tiny_oracle.prompt([80, tiny_oracle.image(8, 8), 120])
    exact, rounded = tiny_model.logits(ids, images), half.logits(ids, images)
    assert rounded.dtype == torch.float32
    assert rounded.isfinite().all()
    agreement = (exact.argmax(-1) == rounded.argmax(-1)).float().mean().item()
    assert agreement >= 0.9


def in_pairs(video: Patches) -> VideoPatches:
    """The same video, two frames at a time."""
    frames, rows, columns = video.grid
    parts = video.pixel_values.split(2 * rows * columns)
    tokens = video.num_tokens // (frames // 2)
    return VideoPatches(
        tuple(replace(video, pixel_values=part, grid=(2, rows, columns), num_tokens=tokens) for part in parts)
    )


@pytest.mark.parametrize("seed", range(4))
def test_videos_of_random_models(
    make_random_oracle: Callable[[int], Oracle], tmp_path: Path, seed: int
) -> None:
    """Of videos longer than wide and high, transformers counts the positions behind them otherwise."""
    oracle = make_random_oracle(seed)
    merge = oracle.config.vision.spatial_merge_size
    videos = [oracle.video(4, 2 * merge, 3 * merge), oracle.video(2, merge, merge, 1)]
    parts: list[int | Patches] = [3, videos[0], 2, oracle.image(merge, 2 * merge), videos[1], 5]
    ids, media = oracle.prompt(parts, seed=seed)
    expected = oracle.run(ids, media)
    model = oracle.load(tmp_path, "native")
    check(model, ids, media, expected)
    check(model, ids, [in_pairs(one) if one.grid[0] > 1 else one for one in media], expected)
