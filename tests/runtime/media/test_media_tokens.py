"""Token types, placeholders and positions against transformers, and the original rule where they differ."""

from __future__ import annotations

from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.ernie4_5_vl_moe.modeling_ernie4_5_vl_moe import Ernie4_5_VLMoeModel
from transformers.models.ernie4_5_vl_moe.processing_ernie4_5_vl_moe import Ernie4_5_VLMoeProcessor

from ernie_local.config import MediaTokens
from ernie_local.errors import UsageError
from ernie_local.media.tokens import (
    IMAGE,
    TEXT,
    VIDEO,
    VisionRule,
    expand_placeholders,
    positions_3d,
    token_types,
)

MEDIA = MediaTokens(image=5, image_start=6, image_end=7, video=8, video_start=9, video_end=10)
SHARED = MediaTokens(image=5, image_start=6, image_end=7, video=5, video_start=9, video_end=10)

Grid = tuple[int, int, int]


def _grid_tensor(grids: list[Grid] | None) -> Any:
    return torch.tensor(grids) if grids else None


def published_positions(ids: list[int], images: list[Grid], videos: list[Grid] | None = None) -> torch.Tensor:
    """(3, tokens) of transformers, whose method needs two numbers of the config and no weights."""
    vision = SimpleNamespace(temporal_merge_size=2, spatial_merge_size=2)
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = MethodType(Ernie4_5_VLMoeModel.get_vision_position_ids, model)
    tensor: Any = torch.tensor([ids])
    kinds = (tensor == MEDIA.image).int() + 2 * (tensor == MEDIA.video).int()
    positions, _ = Ernie4_5_VLMoeModel.get_rope_index(
        model,
        tensor,
        kinds,
        _grid_tensor(images),
        _grid_tensor(videos),
    )
    return positions[:, 0]


def image_tokens(grid: Grid) -> list[int]:
    return [MEDIA.image] * (grid[1] * grid[2] // 4)


grids = st.tuples(st.just(1), st.integers(1, 5).map(lambda n: 2 * n), st.integers(1, 5).map(lambda n: 2 * n))
parts = st.lists(
    st.one_of(grids, st.lists(st.integers(20, 60), min_size=1, max_size=6)), min_size=1, max_size=8
)


@settings(max_examples=120, deadline=None)
@given(parts=parts)
def test_positions_of_tagged_images_equal_transformers(parts: list[Grid | list[int]]) -> None:
    ids: list[int] = []
    image_grids: list[Grid] = []
    for part in parts:
        if isinstance(part, tuple):
            image_grids.append(part)
            ids += [MEDIA.image_start, *image_tokens(part), MEDIA.image_end]
        else:
            ids += part
    positions, next_position = positions_3d(ids, image_grids, MEDIA, 2)
    assert positions.dtype == torch.int64
    assert torch.equal(positions, published_positions(ids, image_grids))
    assert next_position == int(positions.max()) + 1
    later, after = positions_3d(ids, image_grids, MEDIA, 2, 1000)
    assert torch.equal(later, positions + 1000)
    assert after == next_position + 1000


@settings(max_examples=60, deadline=None)
@given(image_grids=st.lists(grids, min_size=1, max_size=4), text=st.lists(st.integers(20, 60), max_size=3))
def test_images_that_touch_are_numbered_one_by_one(image_grids: list[Grid], text: list[int]) -> None:
    """transformers takes touching images for one and fails; so each is compared on its own."""
    ids = text + [token for grid in image_grids for token in image_tokens(grid)] + text
    pieces, start = [torch.arange(len(text)).expand(3, -1)], len(text)
    for grid in image_grids:
        pieces.append(published_positions(image_tokens(grid), [grid]) + start)
        start = int(pieces[-1].max()) + 1
    pieces.append(torch.arange(start, start + len(text)).expand(3, -1))
    positions, next_position = positions_3d(ids, image_grids, MEDIA, 2)
    assert torch.equal(positions, torch.cat(pieces, dim=1))
    assert next_position == start + len(text)


def test_transformers_cannot_number_images_that_touch() -> None:
    """The reason for the test above; when this fails, compare with transformers there too."""
    with pytest.raises(RuntimeError):
        published_positions([MEDIA.image] * 4, [(1, 2, 4), (1, 2, 4)])


def test_a_long_video_advances_by_its_frames_as_the_original_does() -> None:
    """Grid (8, 4, 4) after three tokens; in transformers the end tag collides with the video."""
    ids = [20, 21, MEDIA.video_start] + [MEDIA.video] * 16 + [MEDIA.video_end]
    positions, next_position = positions_3d(ids, [(8, 4, 4)], MEDIA, 2)
    assert positions[0, 3:19].tolist() == [3] * 4 + [4] * 4 + [5] * 4 + [6] * 4
    assert positions[1, 3:7].tolist() == [3, 3, 4, 4]
    assert positions[2, 3:7].tolist() == [3, 4, 3, 4]
    assert positions[:, 19].tolist() == [7, 7, 7]
    assert next_position == 8
    transformers_says = published_positions(ids, [], [(8, 4, 4)])
    assert torch.equal(positions[:, :19], transformers_says[:, :19])
    assert transformers_says[:, 19].tolist() == [5, 5, 5]


def test_a_short_video_equals_transformers() -> None:
    ids = [MEDIA.video_start] + [MEDIA.video] * 12 + [MEDIA.video_end, 20]
    positions, _ = positions_3d(ids, [(2, 6, 8)], MEDIA, 2)
    assert torch.equal(positions, published_positions(ids, [], [(2, 6, 8)]))


def test_image_and_video_of_one_shared_placeholder_are_told_apart_by_their_grids() -> None:
    ids = [6, 5, 7, 9, 5, 5, 5, 5, 10]
    positions, next_position = positions_3d(ids, [(1, 2, 2), (8, 2, 2)], SHARED, 2)
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert positions[1].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 8]
    assert next_position == 9


def test_text_alone_counts_up() -> None:
    positions, next_position = positions_3d([20, 6, 7, 21], [], MEDIA, 2, 5)
    assert positions.tolist() == [[5, 6, 7, 8]] * 3
    assert next_position == 9
    assert positions_3d([], [], MEDIA, 2, 5)[0].shape == (3, 0)


@pytest.mark.parametrize(
    ("ids", "image_grids", "message"),
    [
        ([5, 5, 5], [(1, 4, 4)], "3 placeholder tokens for 1 images of 4 tokens"),
        ([5, 5, 5, 5, 5], [(1, 4, 4)], "5 placeholder tokens for 1 images of 4 tokens"),
        ([20], [(1, 4, 4)], "0 placeholder tokens for 1 images of 4 tokens"),
        ([5], [], "1 placeholder tokens for 0 images of 0 tokens"),
        ([5, 5, 20, 5, 5], [(1, 4, 4)], "image 1 has 4 tokens, but 2 placeholders in a row"),
        ([5, 20, 5, 5, 5, 5], [(1, 4, 4), (1, 2, 2)], "image 1 has 4 tokens, but 1 placeholders in a row"),
        ([5, 5, 5, 20, 5], [(1, 2, 2), (1, 2, 6)], "image 2 has 3 tokens, but 2 placeholders in a row"),
        ([5], [(1, 3, 2)], "image 1 has 1 x 3 x 2 patches, not mergeable by 1 x 2 x 2"),
        ([8], [(3, 2, 2)], "image 1 has 3 x 2 x 2 patches, not mergeable by 2 x 2 x 2"),
        ([5], [(1, 0, 2)], "image 1 has 1 x 0 x 2 patches"),
        ([8, 5], [(1, 2, 2), (2, 2, 2)], "image 1 has 1 frames, but stands at video placeholders"),
        ([5, 8], [(2, 2, 2), (1, 2, 2)], "image 1 has 2 frames, but stands at image placeholders"),
    ],
)
def test_placeholders_that_do_not_fit_are_refused_with_both_numbers(
    ids: list[int], image_grids: list[Grid], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        positions_3d(ids, image_grids, MEDIA, 2)


def test_types_by_tags_equal_the_published_processor() -> None:
    ids = [20, 6, 5, 5, 7, 21, 9, 8, 8, 10, 22, 0, 7]
    processor: Any = SimpleNamespace(
        image_token_id=MEDIA.image,
        video_token_id=MEDIA.video,
        image_start_token_id=MEDIA.image_start,
        image_end_token_id=MEDIA.image_end,
        video_start_token_id=MEDIA.video_start,
        video_end_token_id=MEDIA.video_end,
    )
    expected = Ernie4_5_VLMoeProcessor.create_moe_mm_token_type_ids(processor, ids)
    types = token_types(ids, MEDIA)
    assert types.dtype == torch.uint8
    assert types.tolist() == expected


@pytest.mark.parametrize(
    ("rule", "media", "expected"),
    [
        ("tags", MEDIA, [TEXT, IMAGE, IMAGE, IMAGE, VIDEO, VIDEO, VIDEO]),
        ("placeholder", MEDIA, [TEXT, TEXT, IMAGE, TEXT, TEXT, VIDEO, TEXT]),
        ("tags", SHARED, [TEXT, IMAGE, IMAGE, IMAGE, VIDEO, TEXT, VIDEO]),
    ],
)
def test_types_by_rule(rule: VisionRule, media: MediaTokens, expected: list[int]) -> None:
    assert token_types([20, 6, 5, 7, 9, 8, 10], media, rule).tolist() == expected


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="vision rule 'all' is unknown"):
        token_types([1], MEDIA, "all")  # type: ignore[arg-type]


def test_no_tokens_have_no_types() -> None:
    assert token_types([], MEDIA).shape == (0,)


def test_placeholders_are_expanded_once() -> None:
    once = expand_placeholders([20, 6, 5, 7, 5, 21], [3, 2], MEDIA)
    assert once == [20, 6, 5, 5, 5, 7, 5, 5, 21]
    assert expand_placeholders(once, [3, 2], MEDIA) == once
    assert expand_placeholders([20, 8, 21, 5], [3, 2], MEDIA) == [20, 8, 8, 8, 21, 5, 5]


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([5, 5], [3], "2 image placeholder tokens for 1 images of 3 tokens"),
        ([20], [3], "0 image placeholder tokens for 1 images of 3 tokens"),
        ([5], [], "1 image placeholder tokens for 0 images of 0 tokens"),
        ([5, 5, 5], [2, 2], "3 image placeholder tokens for 2 images of 4 tokens"),
    ],
)
def test_a_count_of_placeholders_that_means_nothing_is_refused(
    ids: list[int], counts: list[int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        expand_placeholders(ids, counts, MEDIA)
