"""Expands the placeholders of images, and gives every token its type and three positions (time, row, column).

It works on token ids and the grids of images alone. Torch is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from ernie_local.errors import UsageError

if TYPE_CHECKING:
    import torch

    from ernie_local.config import MediaTokens, ModelConfig
    from ernie_local.media.patches import MediaInput

VisionRule = Literal["tags", "placeholder"]
Grid = tuple[int, int, int]  # frames, rows, columns, counted in patches

TEXT, IMAGE, VIDEO = 0, 1, 2

_PLACEHOLDER_HINT = (
    "write one image placeholder for each image, or exactly as many in a row as the image has tokens"
)


def token_types(ids: Sequence[int], media: MediaTokens | None, rule: VisionRule = "tags") -> torch.Tensor:
    """The type of every token: (tokens,) uint8 of TEXT, IMAGE or VIDEO; IMAGE and VIDEO are vision tokens.

    By the rule "tags", which checkpoints were trained with, the tags around an image are vision tokens too;
    by "placeholder" only the placeholders are. An id that images and videos share, as in the hub layout, is
    IMAGE. media: None for a model that reads only text: all are TEXT.
    """
    import torch

    if rule not in ("tags", "placeholder"):
        raise UsageError(
            f"vision rule {rule!r} is unknown",
            "the rule says which tokens the vision experts serve; there are two",
            'use "tags" (start and end tags count as vision) or "placeholder" (they do not)',
        )
    tensor = torch.as_tensor(ids, dtype=torch.int64)
    types = torch.full(tensor.shape, TEXT, dtype=torch.uint8)
    if media is None:
        return types
    video_ids, image_ids = [media.video], [media.image]
    if rule == "tags":
        video_ids += [media.video_start, media.video_end]
        image_ids += [media.image_start, media.image_end]
    for kind, kind_ids in ((VIDEO, video_ids), (IMAGE, image_ids)):
        types[torch.isin(tensor, torch.tensor(kind_ids))] = kind
    return types


def expand_placeholders(ids: Sequence[int], counts: Sequence[int], media: MediaTokens | None) -> list[int]:
    """Repeat each placeholder of an image or a video as often as that has tokens.

    counts: the tokens of each, in their order. media: None for a model that reads only text.

    Ids with sum(counts) placeholders are expanded already. UsageError for any other number than that or one
    placeholder for each image.
    """
    placeholders = set() if media is None else {media.image, media.video}
    found = sum(1 for token_id in ids if token_id in placeholders)
    if found == sum(counts):
        return list(ids)
    if found != len(counts):
        raise UsageError(
            f"{found} image placeholder tokens for {len(counts)} images of {sum(counts)} tokens",
            "a prompt holds one placeholder for each image, or one for each token of each image",
            _PLACEHOLDER_HINT,
        )
    remaining = iter(counts)
    expanded: list[int] = []
    for token_id in ids:
        expanded.extend([token_id] * next(remaining) if token_id in placeholders else [token_id])
    return expanded


def positions_3d(
    ids: Sequence[int],
    grids: Sequence[Grid],
    media: MediaTokens | None,
    merge: int,
    start: int = 0,
    *,
    temporal_merge: int = 2,
) -> tuple[torch.Tensor, int]:
    """Positions of the tokens on the axes time, row and column, (3, tokens) int64, and the next position.

    ids: the tokens, placeholders expanded. grids: (t, h, w) in patches of every image, in order; t = 1 is
    an image, t > 1 a video of t frames. merge, temporal_merge: patches and frames that one token joins.
    start: the position of the first token. media: None for a model that reads only text. UsageError for
    placeholders that do not fit the grids.

    A text token is one step on all axes. The token (t, row, column) of an image that begins at position p has
    (p + t, p + row, p + column), and the text after it goes on at p + max(t, rows, columns), as in the
    original code. transformers leaves t out of that maximum, so its long videos overlap with the text after
    them.
    """
    import torch

    shapes = [_merged_shape(grid, index, merge, temporal_merge) for index, grid in enumerate(grids)]
    pieces: list[torch.Tensor] = []
    position = start
    for kind, shape, length in _segments(ids, grids, shapes, media):
        if kind == TEXT:
            pieces.append(torch.arange(position, position + length).expand(3, -1))
            position += length
        else:
            axes = [torch.arange(size) for size in shape]
            # (3, t, rows, columns) -> (3, t * rows * columns)
            pieces.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1) + position)
            position += max(shape)
    positions = torch.cat(pieces, dim=1) if pieces else torch.zeros(3, 0, dtype=torch.int64)
    return positions, position


def model_positions(
    ids: Sequence[int], grids: Sequence[Grid], config: ModelConfig, start: int = 0
) -> tuple[torch.Tensor, int]:
    """As `positions_3d`, for the model of `config`; UsageError for an image where it reads only text."""
    if config.tower is None and not grids:
        return positions_3d(ids, (), None, 1, start)
    sizes = config.media, config.vision.spatial_merge_size, start
    return positions_3d(ids, grids, *sizes, temporal_merge=config.vision.temporal_merge_size)


def _merged_shape(grid: Grid, index: int, merge: int, temporal_merge: int) -> Grid:
    frames, rows, columns = grid
    temporal = 1 if frames == 1 else temporal_merge
    if min(grid) < 1 or frames % temporal or rows % merge or columns % merge:
        raise UsageError(
            f"image {index + 1} has {frames} x {rows} x {columns} patches, not mergeable by "
            f"{temporal} x {merge} x {merge}",
            "one token joins a window of patches, so every side of the grid is a multiple of the window",
            "make the patches with this model's image processor",
        )
    return frames // temporal, rows // merge, columns // merge


def _segments(
    ids: Sequence[int], grids: Sequence[Grid], shapes: Sequence[Grid], media: MediaTokens | None
) -> Iterator[tuple[int, Grid, int]]:
    """Cut the ids into texts (TEXT, unused, length) and images (IMAGE or VIDEO, merged shape, length).

    Images without a tag between them are told apart by their grids.
    """
    lengths = [frames * rows * columns for frames, rows, columns in shapes]
    kinds = {} if media is None else {media.video: VIDEO, media.image: IMAGE}
    found = sum(1 for token_id in ids if token_id in kinds)
    if found != sum(lengths):
        raise UsageError(
            f"{found} placeholder tokens for {len(shapes)} images of {sum(lengths)} tokens",
            "every token of an image fills one placeholder",
            _PLACEHOLDER_HINT,
        )
    index = 0
    for kind, group in groupby(ids, key=lambda token_id: kinds.get(token_id, TEXT)):
        left = sum(1 for _ in group)
        if kind == TEXT:
            yield TEXT, (0, 0, 0), left
            continue
        while left:
            num_frames = grids[index][0]
            if media is not None and media.image != media.video and (kind == VIDEO) != (num_frames > 1):
                name = "video" if kind == VIDEO else "image"
                raise UsageError(
                    f"image {index + 1} has {num_frames} frames, but stands at {name} placeholders",
                    "an image has 1 frame and image placeholders, a video has more and video placeholders",
                    "give the images in the order of their placeholders",
                )
            if lengths[index] > left:
                raise UsageError(
                    f"image {index + 1} has {lengths[index]} tokens, but {left} placeholders in a row",
                    "the placeholders of one image stand side by side, in the order of the images",
                    _PLACEHOLDER_HINT,
                )
            yield kind, shapes[index], lengths[index]
            left -= lengths[index]
            index += 1


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """New tokens with their positions and kinds, checked and on the CPU."""

    token_ids: torch.Tensor  # (tokens,) int64
    positions: torch.Tensor  # (3, tokens) int64, rows T, H, W
    is_vision: torch.Tensor  # (tokens,) bool
    is_placeholder: torch.Tensor  # (tokens,) bool: the embedding is replaced by an image's feature
    next_position: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return int(self.token_ids.shape[0])

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int],
        images: Sequence[MediaInput],
        config: ModelConfig,
        vision_rule: VisionRule = "tags",
        start: int = 0,
    ) -> MediaPrompt:
        """The prompt of these ids, with placeholders expanded. start: the position of the first token.

        UsageError if placeholders and images disagree, or the model reads only text and there is an image.
        """
        import torch

        grids, media = [image.grid for image in images], config.media_ids
        positions, next_position = model_positions(token_ids, grids, config, start)
        tensor = torch.tensor(token_ids, dtype=torch.int64)
        placeholder_ids = torch.tensor([] if media is None else [media.image, media.video])
        return cls(
            token_ids=tensor,
            positions=positions,
            is_vision=token_types(token_ids, media, vision_rule) != TEXT,
            is_placeholder=torch.isin(tensor, placeholder_ids),
            next_position=next_position,
        )
