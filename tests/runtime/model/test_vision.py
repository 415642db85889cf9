"""Vision tower and resampler against transformers, for images and for frames of a video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ernie_local.kernels import reference
from ernie_local.kernels.reference import plain_frame_attention
from ernie_local.model import memory_use, vision
from ernie_local.model.vision import quick_gelu

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel
    from tests.conftest import Oracle


def expected_features(
    oracle: Oracle, pixel_values: torch.Tensor, grids: list[tuple[int, int, int]]
) -> torch.Tensor:
    tensor = torch.tensor(grids)
    inner = oracle.model.model
    with torch.no_grad():
        patches = inner.vision_tower(pixel_values, tensor).last_hidden_state
        features: torch.Tensor = inner.resampler_model(patches, tensor)
    return features


@pytest.mark.parametrize("sizes", [[(2, 2)], [(6, 8)], [(2, 14), (14, 2)], [(4, 4), (2, 6), (8, 10), (2, 2)]])
@torch.inference_mode()
def test_images_match_transformers(
    tiny_oracle: Oracle, tiny_model: LoadedModel, sizes: list[tuple[int, int]]
) -> None:
    images = [tiny_oracle.image(rows, columns, seed) for seed, (rows, columns) in enumerate(sizes)]
    features = tiny_model.network.encode_images(images)
    assert [len(one) for one in features] == [image.num_tokens for image in images]
    together = torch.cat([image.pixel_values for image in images])
    expected = expected_features(tiny_oracle, together, [image.grid for image in images])
    torch.testing.assert_close(torch.cat(features), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_frames_of_a_video_pair_up_as_in_transformers(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    grids = [(4, 4, 6), (1, 2, 2), (2, 6, 2)]
    values = torch.randn(
        96 + 4 + 24, tiny_oracle.config.vision.patch_values, generator=torch.Generator().manual_seed(1)
    )
    network = tiny_model.network
    features = network.resampler(network.vision(values, grids), grids)
    assert len(features) == 4 * 4 * 6 // 8 + 1 + 2 * 6 * 2 // 8
    torch.testing.assert_close(features, expected_features(tiny_oracle, values, grids), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_images_do_not_see_each_other(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    images = [tiny_oracle.image(4, 6, seed) for seed in range(3)]
    together = tiny_model.network.encode_images(images)
    for image, features in zip(images, together, strict=True):
        alone = tiny_model.network.encode_images([image])[0]
        torch.testing.assert_close(alone, features, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_one_pass_of_the_tower_is_bounded(
    tiny_oracle: Oracle, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [tiny_oracle.image(rows, 4, rows) for rows in (2, 4, 10, 2, 2)]
    expected = tiny_model.network.encode_images(images)
    passes: list[int] = []
    hook = tiny_model.network.vision.register_forward_pre_hook(
        lambda _module, inputs: passes.append(len(inputs[0]))
    )
    monkeypatch.setattr(memory_use, "PATCHES_PER_PASS", 24)
    limited = tiny_model.network.encode_images(images)
    hook.remove()
    assert passes == [24, 40, 16]  # an image over the bound goes alone
    for one, other in zip(limited, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_quick_gelu_is_the_same_in_place_and_for_gradients() -> None:
    inner = torch.linspace(-100, 100, 4001)
    expected = inner * torch.sigmoid(1.702 * inner)
    torch.testing.assert_close(quick_gelu(inner.clone()), expected, atol=1e-6, rtol=1e-6)
    leaf = inner.clone().requires_grad_()
    torch.testing.assert_close(quick_gelu(leaf * 1), expected, atol=1e-6, rtol=1e-6)
    quick_gelu(leaf * 1).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("rows_at_once", [1, 5, 512])
@torch.inference_mode()
def test_slices_of_patches_and_tokens_change_nothing(
    tiny_oracle: Oracle, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    grids, seen = [(4, 4, 6), (1, 6, 8)], []
    values = torch.randn(
        144, tiny_oracle.config.vision.patch_values, generator=torch.Generator().manual_seed(2)
    )
    network = tiny_model.network
    hook = network.get_submodule("vision.blocks.0.mlp.fc1").register_forward_hook(
        lambda _module, _inputs, output: seen.append(len(output))
    )
    monkeypatch.setattr(vision, "ROWS_AT_ONCE", rows_at_once)
    features = network.resampler(network.vision(values, grids), grids)
    hook.remove()
    assert max(seen) == min(rows_at_once, 144)
    assert sum(seen) == 144
    torch.testing.assert_close(features, expected_features(tiny_oracle, values, grids), atol=1e-5, rtol=1e-5)


def test_gradients_come_through_as_without_slices(
    tiny_oracle: Oracle, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids, network = [(1, 6, 8)], tiny_model.network
    values = torch.randn(
        48, tiny_oracle.config.vision.patch_values, generator=torch.Generator().manual_seed(3)
    )
    monkeypatch.setattr(vision, "ROWS_AT_ONCE", 5)
    leaf = values.clone().requires_grad_()
    with_gradients = network.resampler(network.vision(leaf, grids), grids)
    with_gradients.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    with torch.inference_mode():
        torch.testing.assert_close(with_gradients, network.resampler(network.vision(values, grids), grids))


@pytest.mark.parametrize("heads_at_once", [1, 3, 16])
def test_heads_that_are_turned_together_change_nothing(
    monkeypatch: pytest.MonkeyPatch, heads_at_once: int
) -> None:
    generator = torch.Generator().manual_seed(4)
    states, angles = torch.randn(10, 3 * 4 * 8, generator=generator), torch.randn(10, 4, generator=generator)
    expected = plain_frame_attention(states, angles.cos(), angles.sin(), 4, [4, 6])
    monkeypatch.setattr(reference, "_TURNED_AT_ONCE", 10 * heads_at_once)
    actual = plain_frame_attention(states, angles.cos(), angles.sin(), 4, [4, 6])
    torch.testing.assert_close(actual, expected)
