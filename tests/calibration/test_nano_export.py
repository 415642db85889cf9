"""nano's trainer against the runtime: a fresh network, exported and loaded, gives the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file

import ernie_local
from ernie_calibration.images.charts import SUPERLATIVES
from ernie_local.media.patches import Patches
from nano import export, layers
from nano.batches import MEDIA, BatchMaker
from nano.layers import product
from nano.network import Batch, NanoNetwork
from nano.optimizer import orthogonalize
from nano.shape import NanoShape
from nano.streams import CHARACTERS, NUM_CHARACTER_CLASSES, Stream
from nano.tokenizer import SPECIAL_TOKENS, train_tokenizer
from nano.warm_start import start_from

GRID = (3, 4)
SHAPE = replace(
    NanoShape(),
    hidden_size=96,
    num_layers=3,
    dense_size=64,
    text_expert_size=48,
    vision_expert_size=16,
    num_experts=8,
    mrope_section=(4, 4, 4),
    vision_size=64,
)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(path)
    return path


def make_batch(tokenizer_path: Path, kinds: tuple[str, ...], **settings: Any) -> Batch:
    stream = Stream(kinds, GRID, batch=2, weight=1.0)
    stream = replace(stream, **settings)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    return BatchMaker((stream,), str(tokenizer_path), SHAPE, seed=0).make(stream, Random(5), tokenizer)


def test_the_ids_in_config_are_those_of_the_tokenizer(tokenizer_path: Path) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    assert len(tokenizer) == NanoShape().vocab_size
    written = export.config(NanoShape())
    pieces = {
        "im_patch_id": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token_id": "<|IMAGE_START|>",
        "image_end_token_id": "<|IMAGE_END|>",
        "video_start_token_id": "<|VIDEO_START|>",
        "video_end_token_id": "<|VIDEO_END|>",
        "eos_token_id": "</s>",
    }
    for key, piece in pieces.items():
        assert tokenizer.piece_to_id(piece) == written[key]
    assert all(tokenizer.piece_to_id(token) > 2 for token in SPECIAL_TOKENS)
    text = "What is the  price of Ölkanne?\n日本 £5"
    assert tokenizer.decode(tokenizer.encode(text)) == text


SHEET: dict[str, Any] = {"sheet": (2, 2, (7, 11)), "grid": (8, 10)}


@pytest.mark.parametrize(
    ("kinds", "settings"),
    [(("text card",), {}), ((), {}), (("clip",), {"num_frames": 3}), (("sheet",), SHEET)],
    ids=["image", "text only", "clip", "two images"],
)
def test_exported_network_gives_the_runtime_the_same_logits(
    tokenizer_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[str, ...],
    settings: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    network = NanoNetwork(SHAPE, NUM_CHARACTER_CLASSES).eval()
    for module in network.modules():
        if hasattr(module, "bias") and isinstance(module.bias, torch.Tensor) and module.bias.ndim == 1:
            torch.nn.init.normal_(module.bias, std=0.02)  # biases must arrive as well
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    torch.save({"network": network.state_dict()}, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(export, "NanoShape", lambda: SHAPE)
    monkeypatch.setattr(layers, "CAPACITY_OVER_MEAN", 100)  # random routers are not balanced
    export.export(tmp_path, tmp_path / "out")
    model = ernie_local.load(tmp_path / "out")

    batch = make_batch(tokenizer_path, kinds, **settings)
    with torch.no_grad():
        hidden, *_ = network(batch)
        expected = product(hidden, network.embed).float()
    actual = []
    for row in range(2):
        length = int(batch.valid[row].sum())
        images = []
        for picture in batch.pictures:
            rows, columns = (2 * side for side in picture.grid)
            size, grid = (columns * 14, rows * 14), (picture.pixels.shape[1], rows, columns)
            patches = picture.pixels[row].float().flatten(0, 1)
            images.append(Patches(patches, grid, size, size, picture.num_tokens))
        logits = model.logits(batch.ids[row, :length].tolist(), images=images)
        scored = (batch.labels[row, 1:length] >= 0).nonzero().squeeze(1)
        actual.append(logits[scored])
    # bfloat16 products in training, float32 in the runtime: now and then a router of random weights chooses
    # otherwise.
    differences = (torch.cat(actual) - expected).abs().amax(-1) / (expected.max() - expected.min())
    assert differences.quantile(0.8) < 0.03
    assert differences.max() < 0.3


def test_orthogonalize_makes_singular_values_equal() -> None:
    torch.manual_seed(0)
    update = orthogonalize(torch.randn(3, 64, 32), steps=6)
    values = torch.linalg.svdvals(update)
    assert update.shape == (3, 64, 32)
    assert values.min() > 0.6
    assert values.max() < 1.4


def test_labels_cover_what_the_model_writes_and_nothing_else(tokenizer_path: Path) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    batch = make_batch(tokenizer_path, ("form",))
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        scored = [label for label in labels if label >= 0]
        assert scored.count(tokenizer.eos_id()) >= 1
        assert tokenizer.piece_to_id("<|IMAGE_PLACEHOLDER|>") not in scored
        placeholders = ids.count(tokenizer.piece_to_id("<|IMAGE_PLACEHOLDER|>"))
        assert placeholders == GRID[0] * GRID[1]
        for position, label in enumerate(labels):
            if label >= 0 and label != tokenizer.eos_id():
                assert label == ids[position]


def spelled(tokenizer: sentencepiece.SentencePieceProcessor, token: int) -> str:
    return str(tokenizer.id_to_piece(token))[0].lower()


@pytest.mark.parametrize("kind", ["invoice", "table", "bar chart", "form", "text card"])
def test_pointers_lead_to_the_cell_that_shows_what_the_token_spells(tokenizer_path: Path, kind: str) -> None:
    """The character heads' labels and the pointers are made apart; they must agree about every glyph."""
    grid = (7, 11)
    stream = Stream((kind,), grid, batch=6, weight=1.0)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    batch = BatchMaker((stream,), str(tokenizer_path), SHAPE, seed=0).make(stream, Random(3), tokenizer)
    (picture,) = batch.pictures
    assert picture.characters is not None
    assert len(batch.answer_pointers) > 10
    assert len(batch.mention_pointers) > 10 or kind == "text card"
    full_cells = 0
    for pointers, ahead in ((batch.answer_pointers, 1), (batch.mention_pointers, 0)):
        for row, position, place in pointers.tolist():
            classes = picture.characters[row, place - int(picture.starts[row])].tolist()
            printed = {CHARACTERS[value - 1].lower() for value in classes if value}
            token = int(batch.ids[row, position + ahead])
            if tokenizer.id_to_piece(token) in SUPERLATIVES:
                assert printed & set("0123456789")  # the value that the superlative means
                continue
            # A cell with more glyphs than slots keeps the first ones only.
            if 0 not in classes and spelled(tokenizer, token) not in printed:
                full_cells += 1
            else:
                assert spelled(tokenizer, token) in printed
    assert full_cells <= 3
    if batch.answer_pointers.numel():
        row, position, _ = batch.answer_pointers.unbind(1)
        assert (batch.labels[row, position + 1] >= 0).all()


@pytest.mark.parametrize(
    "stream",
    [
        Stream(("clip",), (5, 8), batch=3, weight=1.0, num_frames=4),
        Stream(("sheet",), (8, 10), batch=3, weight=1.0, sheet=(2, 2, (7, 11))),
    ],
    ids=["clip", "sheet and crop"],
)
def test_each_image_token_knows_its_cell(tokenizer_path: Path, stream: Stream) -> None:
    """Of every frame and picture; text tokens have none, and what is read lies in printed cells."""
    batch = next(iter(BatchMaker((stream,), str(tokenizer_path), SHAPE, seed=0)))
    cells, seen = batch.cells, torch.zeros_like(batch.ids)
    for picture in batch.pictures:
        for row, start in enumerate(picture.starts.tolist()):
            for token in range(picture.num_tokens):
                in_grid = divmod(token % (picture.grid[0] * picture.grid[1]), picture.grid[1])
                assert cells[row, start + token].tolist() == [*in_grid, *picture.edges[row, token].tolist()]
                seen[row, start + token] += 1
    is_image = batch.ids == MEDIA.image
    assert torch.equal(seen, is_image.long())
    assert not cells[~is_image].any()
    assert len(batch.answer_pointers) > 10
    example, _, place = batch.answer_pointers.unbind(1)
    assert (cells[example, place, 2:] > 0).all()


def test_a_wider_network_starts_as_the_published_one(tokenizer_path: Path, tmp_path: Path) -> None:
    """Nothing reads the new units of wider banks, so that they say what the narrow ones said."""
    torch.manual_seed(0)
    narrow = NanoNetwork(SHAPE, NUM_CHARACTER_CLASSES).eval()
    shards = {
        name: tensor.clone().contiguous()
        for name, tensor in export.published_weights(narrow.state_dict(), SHAPE)
    }
    save_file(shards, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    wide_shape = replace(SHAPE, text_expert_size=64, vision_expert_size=32)
    wide = NanoNetwork(wide_shape, NUM_CHARACTER_CLASSES).eval()
    batch = make_batch(tokenizer_path, ("text card",))
    with torch.no_grad():
        wanted, before = narrow(batch)[0], wide(batch)[0]
        assert start_from(wide, tokenizer_path, tmp_path) == []
        after = wide(batch)[0]
    assert (before - wanted).abs().mean() > 0.3
    assert (after - wanted).abs().mean() < 0.02
