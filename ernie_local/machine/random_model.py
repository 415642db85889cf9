"""Makes random packed weights, checkpoints and token ids, to run and time where answers do not matter.

Weights have a mean of zero and a standard deviation of 0.02. Another mean drowns each token in a constant:
every token then picks the same experts, and any cache looks perfect.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import torch

from ernie_local.checkpoint.packed import PackedTensors, known_format
from ernie_local.checkpoint.parts import expected_tensors
from ernie_local.checkpoint.writer import TensorEntry, write_checkpoint
from ernie_local.config import ModelConfig, QuantizationConfig, parse_config
from ernie_local.packing import TILE_ROWS, LowBitFormat, PageLayout
from ernie_local.packing.formats import TRELLIS_LEVELS, TRELLIS_SCALES
from ernie_local.packing.page import seal

WEIGHT_DEVIATION = 0.02
_TILES_A_PIECE = 256
_FIRST_TEXT_ID = 3  # after the unknown token and those of begin and end
_ROWS_A_PIECE = 1024
# As large as what the layers add; else the mean over all tokens, which attention adds, outweighs embeddings,
# and all tokens go to the same experts.
_EMBEDDING_DEVIATION = 1.0
_DTYPES = {"U8": torch.uint8, "F32": torch.float32, "BF16": torch.bfloat16}


class RandomWeights:
    """Seeded random bytes, numbers, packed matrices and pages."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def bytes(self, *shape: int) -> torch.Tensor:
        """Uniform uint8 of this shape."""
        count = int(np.prod(shape))
        words = self._generator.integers(0, 1 << 64, count // 8 + 1, dtype=np.uint64)
        return torch.from_numpy(words.view(np.uint8)[:count]).view(shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """Normal float32 of this shape and of WEIGHT_DEVIATION."""
        return torch.from_numpy(self._generator.standard_normal(shape, dtype=np.float32)) * WEIGHT_DEVIATION

    def tiles(
        self, low_bit: LowBitFormat, num_tiles: int, columns: int, deviation: float = WEIGHT_DEVIATION
    ) -> torch.Tensor:
        """(num_tiles, tile_bytes) uint8 of a matrix in `low_bit`."""
        tiles = self.bytes(num_tiles, low_bit.tile_bytes(columns))
        start = low_bit.row_scale_bytes()
        groups = low_bit.num_groups(columns)
        code_deviation = ((low_bit.highest_code + 1) ** 2 / 12) ** 0.5
        typical_scale = 1.0 if low_bit.has_fp16_scales else 0.75 * low_bit.highest_scale
        if low_bit.is_trellis:
            code_deviation, typical_scale = pstdev(TRELLIS_LEVELS), mean(TRELLIS_SCALES[8:])
        half = torch.tensor([deviation / code_deviation / typical_scale]).half().view(torch.uint8)
        num_halves = TILE_ROWS * (groups if low_bit.has_fp16_scales else 1)
        tiles[:, : 2 * num_halves] = half.repeat(num_halves)
        if low_bit.has_fp16_scales:
            codes = tiles[:, low_bit.metadata_bytes(columns) :]
            codes[codes == 0] = 128  # -128 has no partner
            return tiles
        middle = low_bit.highest_zero // 2  # and one more, in turn: together the middle of the codes
        random = tiles[:, start : start + groups * TILE_ROWS * (low_bit.scale_bits + low_bit.zero_bits) // 8]
        if low_bit.bits == 4:
            pairs = random.view(num_tiles, groups, 2, TILE_ROWS)
            pairs[:, :, 0] = pairs[:, :, 0] % 128 + 128
            pairs[:, :, 1] = pairs[:, :, 1] % 2 + middle
        elif low_bit.is_trellis:
            random |= 0x88
        elif low_bit.bits == 2:
            random.copy_((random % 8 + 8) | ((random // 16 % 2 + middle) << 4))
        else:
            raise ValueError(low_bit.name)  # nothing asks for w3 yet
        return tiles

    def matrix(
        self, low_bit: LowBitFormat, rows: int, columns: int, deviation: float = WEIGHT_DEVIATION
    ) -> Iterator[torch.Tensor]:
        """The bytes of a packed matrix, in pieces."""
        num_tiles = low_bit.num_tiles(rows)
        for start in range(0, num_tiles, _TILES_A_PIECE):
            yield self.tiles(low_bit, min(_TILES_A_PIECE, num_tiles - start), columns, deviation).flatten()

    def page(self, layout: PageLayout) -> torch.Tensor:
        """(page_bytes,) uint8, with its checksum."""
        page = torch.zeros(layout.page_bytes, dtype=torch.uint8)
        page[:64] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
        num_tiles = 2 * layout.gate_up.num_tiles(layout.inner_size)
        gate_up = self.tiles(layout.gate_up, num_tiles, layout.hidden_size)
        page[layout.gate_up_offset : layout.down_offset] = gate_up.flatten()
        down = self.tiles(layout.down, layout.down.num_tiles(layout.hidden_size), layout.inner_size)
        page[layout.down_offset : layout.down_offset + layout.down_bytes] = down.flatten()
        seal(page)
        return page


def write_random(
    directory: Path, raw: Mapping[str, object], tables: QuantizationConfig | None, seed: int
) -> None:
    """The checkpoint that `raw`, a config.json, describes, in the formats of `tables`, into a new place."""
    config = parse_config(raw, "config.json").packed_by(tables)
    tensors = sorted(expected_tensors(config), key=lambda tensor: not tensor.is_packed)
    entries = [TensorEntry(tensor.name, _DTYPES[tensor.code], tensor.shape) for tensor in tensors]
    directory.mkdir(parents=True)
    packed, random = PackedTensors(config), RandomWeights(seed)
    write_checkpoint(directory, entries, partial(_random_pieces, packed=packed, random=random))
    if tables is not None:
        raw = {**raw, "quantization_config": tables.to_json()}
    (directory / "config.json").write_text(json.dumps(raw, indent=1))


def _random_pieces(
    entry: TensorEntry, packed: PackedTensors, random: RandomWeights
) -> Iterator[torch.Tensor]:
    """The values of a tensor."""
    name, _, suffix = entry.name.rpartition(".")
    deviation = _EMBEDDING_DEVIATION if name == "embed_tokens" else WEIGHT_DEVIATION
    if entry.dtype == torch.uint8 and len(entry.shape) == 2:
        layout = packed.layout_of(entry.name)
        assert isinstance(layout, PageLayout), entry.name
        for _ in range(entry.shape[0]):
            yield random.page(layout)
    elif entry.dtype == torch.uint8:
        yield from random.matrix(known_format(suffix), *packed.matrix_shape(name), deviation)
    elif "norm" in name and suffix == "weight":
        yield torch.ones(entry.shape, dtype=entry.dtype)
    elif suffix == "bias":
        yield torch.zeros(entry.shape, dtype=entry.dtype)
    else:
        for start in range(0, entry.shape[0], _ROWS_A_PIECE):
            rows = min(_ROWS_A_PIECE, entry.shape[0] - start)
            values = random.normal(rows, *entry.shape[1:])
            yield values.mul_(deviation / WEIGHT_DEVIATION).to(entry.dtype)


def text_ids(config: ModelConfig, count: int, seed: int = 0) -> list[int]:
    """`count` seeded random ids of text, so that experts are chosen as evenly as possible."""
    media = set() if config.media_ids is None else set(dataclasses.astuple(config.media_ids))
    text = [one for one in range(_FIRST_TEXT_ID, config.text.vocab_size) if one not in media]
    chosen = torch.randint(len(text), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [text[one] for one in chosen]
