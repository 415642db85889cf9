"""Holds a model in memory with its files: logits and router choices of whole prompts, and engines for chats.

Tokenizer and image settings are read when first used, so config and weights alone are enough for logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import Bank, ModelConfig
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.experts.build import stored_page_bytes
from ernie_local.experts.mapped import MappedExperts
from ernie_local.experts.options import PagingStats
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.options import choose_kv_dtype
from ernie_local.media.open_image import ImageSource
from ernie_local.media.patches import MediaPatches, Patches, VideoPatches
from ernie_local.media.processor import to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.tokens import VisionRule, expand_placeholders
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS
from ernie_local.model_files import ModelFiles
from ernie_local.replay.recorder import TraceRecorder
from ernie_local.reuse.results import KeptResults

if TYPE_CHECKING:
    from ernie_local.text.tokenizer import ErnieTokenizer


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Defaults for the engines of a model. parallel: for how many of them at once there is memory."""

    context_size: int
    kv_dtype: torch.dtype
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    vision_rule: VisionRule = "tags"
    parallel: int = 1


class LoadedModel:
    """What `ernie_local.load` returns. May be used from several threads at once.

    A prompt waits until the model is free; tokens that several threads decode at about the same time are
    computed together (see Engine). All get the same numbers as without the others. Each engine and chat is
    one thread's at a time; `settings.parallel` of them have memory at once.
    """

    def __init__(
        self,
        network: ErnieModel,
        files: ModelFiles,
        settings: EngineSettings,
        weight_bytes: int,
        load_seconds: float,
        context_limit: int | None = None,
        results: KeptResults | None = None,
        decisions: Sequence[str] = (),
        adapter_notes: Sequence[str] = (),
    ) -> None:
        """context_limit: most tokens, if the caller has set it. results: what chats keep for each other.

        decisions: what the placement chose so that the model fits, a line each. adapter_notes: a line for
        each adapter.
        """
        self.network, self.files, self.settings = network, files, settings
        self.directory = files.directory
        self.config: ModelConfig = network.config
        self.weight_bytes, self.load_seconds = weight_bytes, load_seconds
        self._context_limit, self.results = context_limit, results
        self.decisions, self.adapter_notes = decisions, adapter_notes
        self.recorder: TraceRecorder | None = None  # see `record_trace`

    def __repr__(self) -> str:
        device, dtype = str(self.network.device), self.network.dtype
        return f"LoadedModel({str(self.directory)!r}, device={device!r}, {dtype})"

    @property
    def paging(self) -> PagingStats | None:
        """What paging has done so far; None where all experts are in memory."""
        experts = self.network.experts
        return experts.stats.copy() if isinstance(experts, PagedExperts) else None

    def paging_notes(self) -> list[str]:
        """Lines about paging that a user should read; may be none."""
        notes, swapped = [*self.decisions, *self.network.experts.describe()], self.network.image_weights
        return notes if swapped is None else [*notes, swapped.describe()]

    def wait_until_resident(self) -> None:
        """Return when all weights that stay in memory have been read and checked.

        Until then a computation waits for those that it needs. ModelUnusable for a damaged page.
        """
        self.network.experts.wait_until_resident()

    @property
    def resident_share(self) -> float:
        """The share of the layers' packed weights that have been read, 1 in the end, or if `load` read them.

        Each part is checked before it is first computed with, or later, when the model does not compute.
        """
        experts = self.network.experts
        if not isinstance(experts, MappedExperts):
            return 1.0
        return experts.reader.read_bytes / experts.reader.total_bytes

    @property
    def tokenizer(self) -> ErnieTokenizer:
        """The directory's tokenizer; ModelUnusable names the file that is missing."""
        return self.files.tokenizer

    @property
    def image_processor(self) -> ImageProcessorConfig:
        """How images are resized and cut, as `ModelFiles.image_processor`."""
        return self.files.image_processor

    def engine(
        self,
        *,
        context_size: int | None = None,
        kv_dtype: str | torch.dtype | None = None,
        chunk_tokens: int | None = None,
        vision_rule: VisionRule | None = None,
    ) -> Engine:
        """A new, empty sequence over this model. Arguments are by default those of `load`."""
        settings = self.settings
        return Engine(
            self.network,
            context_size if context_size is not None else settings.context_size,
            settings.kv_dtype if kv_dtype is None else choose_kv_dtype(kv_dtype, self.network.dtype),
            chunk_tokens if chunk_tokens is not None else settings.chunk_tokens,
            vision_rule if vision_rule is not None else settings.vision_rule,
            self.recorder,
        )

    def record_trace(self) -> TraceRecorder:
        """Record the experts that tokens choose in engines and chats made from now on; `trace()` has them.

        A replay equals the paging of this model if nothing was computed before this, and `router_choices` was
        not called since.
        """
        with open_checkpoint(self.directory, self.config) as checkpoint:
            sizes = stored_page_bytes(checkpoint, self.config)
        self.recorder = TraceRecorder(self.directory.name, self.config.text.experts_per_token, sizes)
        return self.recorder

    def logits(
        self, input_ids: Sequence[int] | torch.Tensor, images: Sequence[ImageSource | MediaPatches] = ()
    ) -> torch.Tensor:
        """Teacher-forced logits of every position, (tokens, vocab_size) float32, on the CPU.

        input_ids: token ids, a sequence or a tensor of shape (tokens,) or (1, tokens). images: paths, bytes,
        PIL images, uint8 arrays or patches, in the order of their placeholders. Each has one placeholder,
        which is expanded, or one for each of its tokens. The rows of the result are those of the expanded
        ids.
        """
        token_ids, patches = self._prepare(input_ids, images)
        logits = torch.empty(len(token_ids), self.config.text.vocab_size, dtype=torch.float32)
        # Until the engine is gone: other threads must not find its memory in use.
        with self.network.lock:
            self._whole_prompt_engine(len(token_ids)).prefill_all(token_ids, patches, out=logits)
        return logits

    def router_choices(
        self, input_ids: Sequence[int] | torch.Tensor, images: Sequence[ImageSource | MediaPatches] = ()
    ) -> list[torch.Tensor]:
        """Experts chosen for each token: one (tokens, top_k) int64 tensor per layer, (tokens, 0) if dense.

        Ids count within the token's own bank, best first; arguments as for `logits`.
        """
        prepared = self._prepare(input_ids, images)
        with self.network.lock:  # as in `logits`
            return self._find_choices(*prepared)

    def _find_choices(self, token_ids: list[int], patches: list[MediaPatches]) -> list[torch.Tensor]:
        engine = self._whole_prompt_engine(len(token_ids))
        record = RouteRecord(engine, len(token_ids))
        with engine.reporting_routes(record):
            engine.prefill(token_ids, patches)
        return record.choices

    def patches(self, images: Sequence[ImageSource | Patches]) -> list[Patches]:
        """The patches of each image, and of each page of a document."""
        return to_patches(images, self.image_processor)

    def _prepare(
        self, input_ids: Sequence[int] | torch.Tensor, images: Sequence[ImageSource | MediaPatches]
    ) -> tuple[list[int], list[MediaPatches]]:
        patches: list[MediaPatches] = []
        for image in images:
            patches += [image] if isinstance(image, VideoPatches) else self.patches([image])
        counts = [image.num_tokens for image in patches]
        return expand_placeholders(_to_ids(input_ids), counts, self.config.media_ids), patches

    def _whole_prompt_engine(self, num_tokens: int) -> Engine:
        if self._context_limit is not None and num_tokens > self._context_limit:
            raise DoesNotFit(
                f"{num_tokens} tokens do not fit into a context of {self._context_limit}",
                "the model was loaded with this context size",
                f"shorten the input, or load the model with a larger {parameter('context_size')}",
            )
        return self.engine(context_size=max(1, num_tokens))


class RouteRecord:
    """A RouteHook that keeps the experts that the tokens of a sequence choose, while an engine reports to it.

    choices: as `LoadedModel.router_choices` returns them. Rows of tokens that never ran are not filled.
    """

    def __init__(self, engine: Engine, num_tokens: int) -> None:
        """For the first `num_tokens` tokens of the sequence of `engine`."""
        self._engine = engine
        text = engine.model.config.text
        self.choices = [
            torch.empty(num_tokens, text.experts_per_token if is_moe else 0, dtype=torch.int64)
            for is_moe in text.moe_layers
        ]

    def __call__(
        self,
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        """As RouteHook."""
        del bank, expert_weights
        self.choices[layer_id][self._engine.length + token_indices.cpu()] = expert_ids.cpu()


def _to_ids(input_ids: Sequence[int] | torch.Tensor) -> list[int]:
    if not isinstance(input_ids, torch.Tensor):
        return [int(token_id) for token_id in input_ids]
    flat = input_ids[0] if input_ids.ndim == 2 and input_ids.shape[0] == 1 else input_ids
    if flat.ndim != 1 or flat.is_floating_point() or flat.is_complex():
        raise UsageError(
            f"input_ids of shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}",
            "one sequence of whole numbers is expected, shape (tokens,) or (1, tokens)",
            "call once for each sequence",
        )
    ids: list[int] = flat.tolist()
    return ids
