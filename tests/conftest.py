"""Shared fixtures: tiny random models made by transformers, saved in every layout, and run as oracle.

Test files take what they need as fixtures; they may import the classes below for annotations only.
"""

from __future__ import annotations

import gc
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pytest

# Before torch is imported: threads that wait must not take the core of another process that tests.
os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

import torch
from hypothesis import settings

from ernie_local.config import ModelConfig, parse_config
from ernie_local.media.patches import Patches
from tests.hub_double import HubDouble

if TYPE_CHECKING:
    from ernie_local.checkpoint.format_tables import FormatChoice
    from ernie_local.engine import Engine
    from ernie_local.loading import LoadedModel

# How long an example takes says more about the machine's load than about the code. Every run draws the same,
# so that no change fails on what its author could not see; `--hypothesis-profile=default` draws new ones.
settings.register_profile("ernie-local", deadline=None, derandomize=True)
settings.load_profile("ernie-local")

Layout = Literal["native", "saved", "hub"]
IMAGE_TOKENS = 6, 5, 7  # start, placeholder, end
VIDEO_TOKENS = 9, 8, 10  # start, placeholder, end
FIRST_TEXT_TOKEN = 11  # above all these

TINY_TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": [48, 16],
    "moe_k": 2,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]},
}
TINY_VISION: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True)
class OracleOutput:
    """logits: (tokens, vocab) float32; choices: per layer (tokens, top_k) ids, (tokens, 0) if dense."""

    logits: torch.Tensor
    choices: list[torch.Tensor]


@dataclass(frozen=True)
class Oracle:
    """A tiny random model of transformers, with ways to write prompts for it, run it and save it."""

    model: Any
    seed: int
    config: ModelConfig = field(init=False)

    def __post_init__(self) -> None:
        raw = json.loads(self.model.config.to_json_string())
        object.__setattr__(self, "config", parse_config(raw, "config.json"))

    @property
    def _image_ids(self) -> tuple[int, int, int]:
        """Start, placeholder, end."""
        media = self.config.media
        return media.image_start, media.image, media.image_end

    def image(self, rows: int, columns: int, seed: int = 0) -> Patches:
        """Random patches of an image of rows x columns patches."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        values = torch.randn(rows * columns, self.config.vision.patch_values, generator=generator)
        side, window = self.config.vision.patch_size, self.config.vision.spatial_merge_size**2
        size = (columns * side, rows * side)
        return Patches(values, (1, rows, columns), size, size, rows * columns // window)

    def video(self, frames: int, rows: int, columns: int, seed: int = 0) -> Patches:
        """Random patches of a video of so many frames."""
        image = self.image(frames * rows, columns, 500 + seed)
        tokens = image.num_tokens // self.config.vision.temporal_merge_size
        return replace(image, grid=(frames, rows, columns), num_tokens=tokens)

    def prompt(
        self, parts: Sequence[int | Patches], seed: int = 0, tags: bool = True
    ) -> tuple[list[int], list[Patches]]:
        """Ids and images; an int in `parts` stands for so many random text tokens."""
        draw = random.Random(1000 * self.seed + seed)
        image, ids = self._image_ids, list[int]()
        # Published ids of images are at the end of the vocabulary, the others before all text.
        last = image[1] if image[1] > FIRST_TEXT_TOKEN else self.config.text.vocab_size
        for part in parts:
            if isinstance(part, int):
                ids += [draw.randrange(FIRST_TEXT_TOKEN, last) for _ in range(part)]
            else:
                start, one, end = VIDEO_TOKENS if part.grid[0] > 1 else image
                placeholders = [one] * part.num_tokens
                ids += [start, *placeholders, end] if tags else placeholders
        return ids, [part for part in parts if isinstance(part, Patches)]

    def run(
        self, ids: Sequence[int], images: Sequence[Patches] = (), positions: torch.Tensor | None = None
    ) -> OracleOutput:
        """Teacher-forced. positions: (3, tokens) in place of those that transformers works out itself."""
        tensor = torch.tensor([list(ids)])
        is_vision = torch.isin(tensor, torch.tensor([*self._image_ids, *VIDEO_TOKENS]))
        inputs: dict[str, Any] = {"moe_mm_token_type_ids": is_vision.long()}
        if images:
            kinds = (tensor == self.config.media.image).long() + 2 * (tensor == VIDEO_TOKENS[1]).long()
            inputs["mm_token_type_ids"] = kinds
        for suffix, name in (("", "image"), ("_videos", "video")):
            some = [image for image in images if (image.grid[0] > 1) == (name == "video")]
            if some:
                inputs[f"pixel_values{suffix}"] = torch.cat([image.pixel_values for image in some])
                inputs[f"{name}_grid_thw"] = torch.tensor([image.grid for image in some])
        if positions is not None:
            inputs["position_ids"] = positions[:, None]
        choices = [
            torch.full((len(ids), self.config.text.experts_per_token if is_moe else 0), -1)
            for is_moe in self.config.text.moe_layers
        ]
        hooks = [
            module.register_forward_hook(_note_choice(choices, name, is_vision[0]))
            for name, module in self.model.named_modules()
            if name.endswith("_moe.gate")
        ]
        try:
            with torch.no_grad():
                logits = self.model(input_ids=tensor, **inputs).logits[0].float()
        finally:
            for hook in hooks:
                hook.remove()
        return OracleOutput(logits, choices)

    def save(
        self,
        directory: Path,
        layout: Layout = "hub",
        max_shard_size: str = "1GB",
        config: dict[str, Any] | None = None,
    ) -> Path:
        """Write config, image settings and weights. "native" and "saved" are what save_pretrained writes, in
        transformers' tensor names and in the original ones; "hub" is what Baidu publishes: flat config, here
        that of `hub_config` by default, and `vision_model.` without prefix."""
        directory.mkdir(parents=True, exist_ok=True)
        if layout == "native":
            self.model.save_pretrained(directory, save_original_format=False, max_shard_size=max_shard_size)
        else:
            self.model.save_pretrained(directory, max_shard_size=max_shard_size)
        if layout == "hub":
            _rename_vision(directory)
            raw = hub_config(self.config) if config is None else config
            (directory / "config.json").write_text(json.dumps(raw))
        limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 6177}
        (directory / "preprocessor_config.json").write_text(json.dumps(limits))
        return directory

    def load(self, directory: Path, layout: Layout = "hub", **options: Any) -> LoadedModel:
        """Save and load again with ernie_local."""
        from ernie_local.loading import load

        return load(self.save(directory, layout), **options)


def _note_choice(
    choices: list[torch.Tensor], name: str, is_vision: torch.Tensor
) -> Callable[[Any, Any, tuple[torch.Tensor, ...]], None]:
    layer_id = int(name.split(".layers.", 1)[1].split(".", 1)[0])
    rows = is_vision if "vision_moe" in name else ~is_vision

    def note(_module: Any, _inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        # Without any vision token transformers sends all through the text bank; `rows` says the same then.
        choices[layer_id][rows] = outputs[2]

    return note


def _rename_vision(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    def plain(name: str) -> str:
        return name.removeprefix("model.") if name.startswith("model.vision_model.") else name

    for path in directory.glob("*.safetensors"):
        save_file({plain(name): tensor for name, tensor in load_file(path).items()}, path)
    for index in directory.glob("*.index.json"):
        raw = json.loads(index.read_text())
        raw["weight_map"] = {plain(name): shard for name, shard in raw["weight_map"].items()}
        index.write_text(json.dumps(raw))


def hub_config(config: ModelConfig) -> dict[str, Any]:
    """The flat config.json that Baidu would publish for this model."""
    text, vision, media = config.text, config.vision, config.media
    first = text.moe_layers.index(True) if any(text.moe_layers) else len(text.moe_layers)
    assert text.moe_layers == tuple(layer >= first for layer in range(len(text.moe_layers))), (
        "not expressible"
    )
    assert text.head_dim == text.hidden_size // text.num_attention_heads, "not expressible"
    return {
        "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
        "model_type": "ernie4_5_moe_vl",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_3d": True,
        "freq_allocation": text.mrope_section[2],
        "moe_num_experts": [bank.num_experts for bank in text.banks],
        "moe_intermediate_size": [bank.expert_size for bank in text.banks],
        "moe_k": text.experts_per_token,
        "moe_layer_start_index": [first, first],
        "moe_layer_end_index": [text.num_hidden_layers + 1, text.num_hidden_layers],
        "moe_layer_interval": 1,
        "moe_num_shared_experts": text.num_shared_experts,
        "moe_gate": "topk",
        "moe_gate_act": "softmax",
        "moe_use_aux_free": True,
        "hidden_act": "silu",
        "use_bias": False,
        "tie_word_embeddings": text.tie_word_embeddings,
        "im_patch_id": media.image,
        "image_start_token_id": media.image_start,
        "image_end_token_id": media.image_end,
        "video_start_token_id": media.video_start,
        "video_end_token_id": media.video_end,
        "spatial_conv_size": vision.spatial_merge_size,
        "temporal_conv_size": 2,
        "pixel_hidden_size": vision.hidden_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vision_config": {
            "model_type": "DFNRope_vision_transformer",
            "depth": vision.depth,
            "embed_dim": vision.hidden_size,
            "hidden_size": vision.hidden_size,
            "hidden_act": "quick_gelu",
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "num_heads": vision.num_heads,
            "in_channels": vision.in_channels,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
        },
    }


def build_oracle(
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    tied: bool = True,
    media: tuple[int, int, int] = IMAGE_TOKENS,
) -> Oracle:
    """`text` and `vision` override TINY_TEXT and TINY_VISION. Weights are larger than at the start of
    training, no norm is 1 and no bias 0, so that every parameter shows in the logits. media: ids of the
    start of an image, its placeholder and its end."""
    from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

    config: Any = Ernie4_5_VLMoeConfig(
        text_config={**TINY_TEXT, **(text or {})},
        vision_config={**TINY_VISION, **(vision or {})},
        image_start_token_id=media[0],
        image_token_id=media[1],
        image_end_token_id=media[2],
        video_token_id=8,
        video_start_token_id=9,
        video_end_token_id=10,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    # transformers' default, a grouped product, wants rows of 16 bytes.
    text_config = config.text_config
    sizes = (text_config.hidden_size, *text_config.moe_intermediate_size)
    config._experts_implementation = "eager" if any(size % 4 for size in sizes) else "grouped_mm"
    model: Any = Ernie4_5_VLMoeForConditionalGeneration(config)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.normal_(0.0, 0.05)
        elif parameter.ndim == 1:
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.1)
        else:
            parameter.normal_(0.0, 1.2 * parameter.shape[-1] ** -0.5)
    return Oracle(model, seed)


def build_random_oracle(seed: int) -> Oracle:
    """A model with shapes drawn from `seed`: heads, banks, layers, tower, tied or not."""
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4, 6, 8])
    head_dim = draw.choice([8, 12, 16, 20, 32])
    each_side = draw.randint(1, head_dim // 4 - (head_dim % 4 == 0))
    num_experts = draw.choice([1, 3, 5, 7, 8, 11, 16])
    num_layers = draw.randint(1, 4)
    hidden_size = heads * head_dim if draw.random() < 0.6 else draw.choice([40, 56, 72])
    vision_heads = draw.choice([1, 2, 3])
    text = {
        "vocab_size": draw.choice([64, 101, 160]),
        "hidden_size": hidden_size,
        "intermediate_size": draw.choice([48, 96, 130]),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([count for count in range(1, heads + 1) if heads % count == 0]),
        "moe_intermediate_size": [draw.choice([24, 33, 48]), draw.choice([8, 11, 16])],
        "moe_k": draw.randint(1, min(num_experts, 6)),
        "moe_num_experts": num_experts,
        "moe_num_shared_experts": draw.randint(0, 3),
        "rms_norm_eps": draw.choice([1e-5, 1e-6, 1e-3]),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": draw.choice([1e4, 5e5]),
            "mrope_section": [each_side, each_side, head_dim // 2 - 2 * each_side],
        },
        "mlp_layer_types": ["dense"] + ["sparse"] * (num_layers - 1)
        if draw.random() < 0.6
        else [draw.choice(["dense", "sparse", "sparse"]) for _ in range(num_layers)],
    }
    if hidden_size != heads * head_dim:
        text["head_dim"] = head_dim
    vision = {
        "depth": draw.randint(1, 4),
        "hidden_size": vision_heads * draw.choice([8, 12, 16]),
        "num_heads": vision_heads,
        "intermediate_size": draw.choice([32, 50]),
        "patch_size": draw.choice([14, 14, 4]),
        "spatial_merge_size": draw.choice([2, 2, 2, 1, 3]),
    }
    return build_oracle(seed, text, vision, tied=draw.random() < 0.5)


@pytest.fixture(scope="session")
def make_oracle() -> Callable[..., Oracle]:
    """`build_oracle`, for a model of one's own."""
    return build_oracle


@pytest.fixture(scope="session")
def make_random_oracle() -> Callable[[int], Oracle]:
    """`build_random_oracle`: shapes drawn from a seed."""
    return build_random_oracle


class PackNano(Protocol):
    """Rounds nano to nearest in the formats of a choice, once in a session; the directory is read-only."""

    def __call__(self, choice: FormatChoice) -> Path: ...


@pytest.fixture(scope="session")
def pack_nano(tmp_path_factory: pytest.TempPathFactory) -> PackNano:
    """`pack_nano(FormatChoice(...))`: the directory of nano in these formats. Not to be written to."""
    from ernie_local.checkpoint.format_tables import format_tables
    from ernie_local.checkpoint.hub import NANO_DIRECTORY
    from ernie_local.config import read_config
    from tests.plain_export import export_plainly

    made: dict[FormatChoice, Path] = {}

    def pack(choice: FormatChoice) -> Path:
        if choice not in made:
            made[choice] = tmp_path_factory.mktemp("packed_nano") / str(choice.experts)
            export_plainly(NANO_DIRECTORY, made[choice], format_tables(read_config(NANO_DIRECTORY), choice))
        return made[choice]

    return pack


@pytest.fixture(scope="session")
def packed_nano(pack_nano: PackNano) -> Path:
    """nano with experts in w4 and the rest in w8. Not to be written to."""
    from ernie_local.checkpoint.format_tables import FormatChoice

    return pack_nano(FormatChoice())


@pytest.fixture(scope="session")
def tiny_oracle() -> Oracle:
    """The tiny model of all tests that need just one."""
    return build_oracle()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_oracle` in the hub's layout, without a tokenizer. Not to be written to."""
    return tiny_oracle.save(tmp_path_factory.mktemp("tiny_checkpoint"))


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> LoadedModel:
    """`tiny_oracle` loaded by ernie_local in float32."""
    from ernie_local.loading import load

    return load(tiny_checkpoint)


@pytest.fixture
def tiny_engine(tiny_model: LoadedModel) -> Engine:
    """An empty sequence over `tiny_model`."""
    return tiny_model.engine(context_size=512)


@pytest.fixture
def native_kernels() -> Iterator[ModuleType]:
    """The native module; whatever instruction set a test chose, the one before is in use again after it."""
    from ernie_local.kernels.native import native_module

    module = native_module()
    if module is None:
        pytest.skip("the native module was not built here")
    before = module.instruction_set()
    yield module
    module.use_instruction_set(before)


@pytest.fixture
def no_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the C++ build failed."""
    from ernie_local.kernels import native

    monkeypatch.setattr(native, "find_module", lambda: (None, "the C++ build failed"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """A hub on loopback that this process asks, with the cache in tmp_path / "cache", and no token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubDouble() as double:
        files = f"{double.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", double.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield double


def pytest_configure() -> None:
    """One thread for torch and the kernels in a process beside others.

    As many processes compute as there are cores, and threads that wait for each other there take up to twice
    the time. Tests of kernels have more.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """For torch and the kernels, as where a program has two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_collection_finish() -> None:
    """Let no collection of garbage look again at what was imported and collected."""
    gc.collect()
    gc.freeze()
