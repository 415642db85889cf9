"""Runs the whole network: token embedding, vision tower and resampler, decoder layers, logits.

Parameters carry the checkpoint's names (checkpoint/names.py). Routed experts are not parameters: an
ExpertProvider computes them. How tokens attend is chosen in attention.py, once for each forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError, parameter
from ernie_local.kernels.gpu import find_triton
from ernie_local.kernels.graphs import Recorder
from ernie_local.kernels.memory import receive, send
from ernie_local.media.patches import MediaPiece
from ernie_local.model.attention import AttentionStep, choose_attention, token_kernel
from ernie_local.model.decode_graphs import DecodeGraphs
from ernie_local.model.decoder import DecoderLayer, LayerStep
from ernie_local.model.host_attention import HostAttention, join_tokens
from ernie_local.model.host_parts import ALL_ON_GPU
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.layers import (
    AdaptedLinear,
    Embedding,
    Linear,
    PackedEmbedding,
    PackedLinear,
    RMSNorm,
    computes_rows_apart,
)
from ernie_local.model.memory_use import (
    AttentionWay,
    cpu_attention_way,
    encoding_bytes,
    gpu_attention_way,
    tower_passes,
)
from ernie_local.model.moe import ExpertProvider, RouteHook, TokenRows
from ernie_local.model.rope import TextRope
from ernie_local.model.shared_steps import SharedSteps, StepRequest
from ernie_local.model.vision import Resampler, VisionTower, run_in_step
from ernie_local.progress import Pause

_Result = TypeVar("_Result")


class SwappedWeights(Protocol):
    """Weights that are there only while they are used.

    num_bytes: of all; budget_bytes: of those that `ExpertProvider.make_room` keeps memory for. is_streamed:
    whether each stage comes when it computes, in place of the one before.
    """

    num_bytes: int
    budget_bytes: int
    is_streamed: bool

    def read(self) -> None:
        """Make them ready for computing, if they are not."""
        ...

    def drop(self) -> None:
        """Give their memory back, whatever a `read` has got to."""
        ...

    def describe(self) -> str:
        """What a user should know of them."""
        ...


class NextToken(NamedTuple):
    """A text token, its position on all three axes, and the cache of the sequence that it continues."""

    token_id: int
    position: int
    cache: KVCache


class ErnieModel(nn.Module):
    """ERNIE 4.5 for one sequence, or several (`decode_together`); the caller keeps each one's KVCache."""

    def __init__(self, config: ModelConfig, gpu_kernels: str = "auto") -> None:
        """A network without routed experts, which `attach` brings: parts of it work without them.

        gpu_kernels: what attends on a GPU, one of kernels.arguments.GpuKernels.
        """
        super().__init__()
        self._gpu_kernels = gpu_kernels
        self.config = config
        self.host = ALL_ON_GPU  # what lies in RAM beside a GPU; who fills the network sets it
        self._experts: ExpertProvider | None = None
        # Vision tower and resampler, where experts have their memory while no image is encoded.
        self.image_weights: SwappedWeights | None = None
        text = config.text
        self.embed_tokens: Embedding | PackedEmbedding = Embedding(text.vocab_size, text.hidden_size)
        is_packed = config.quantization is not None
        if config.reads_images:
            self.vision = VisionTower(config.vision, is_packed=is_packed)
            self.resampler = Resampler(config)
        self.layers = nn.ModuleList(
            DecoderLayer(text, layer_id, is_packed=is_packed) for layer_id in range(text.num_hidden_layers)
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, always_native=is_packed)
        # None where the embedding is the head as well.
        self.lm_head: Linear | PackedLinear | AdaptedLinear | None = None
        if not text.tie_word_embeddings:
            self.lm_head = Linear(text.hidden_size, text.vocab_size, bias=False)
        self._rope: TextRope | None = None
        self.recorder: Recorder | None = None
        self._begin_life()

    def attach(self, experts: ExpertProvider, recorder: Recorder | None = None) -> None:
        """Finish the network. recorder: of decode on a GPU; None where it is not recorded."""
        self._experts, self.recorder = experts, recorder
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        self._has_exact_rows = computes_rows_apart(self.config, [*self.layers.modules(), head])
        self._begin_life()

    def _begin_life(self) -> None:
        # Who holds it may compute. Both are taken by a plain `with`, which Ctrl-C cannot leave locked; a flag
        # it could leave set, because a module sets its attributes in Python.
        self.lock = threading.RLock()
        self._computing = threading.Lock()
        self._is_broken_off = False
        self._computing_thread = 0
        self.steps: SharedSteps[Any] = SharedSteps(self.lock, self._computing.locked)

    def alone(self, run: Callable[[], _Result]) -> _Result:
        """The result of `run`, which computes with this model while no other thread does.

        It is called again where a GPU lacks memory and experts give some up. Where a `run` did not end,
        because of an error or Ctrl-C, the next one begins with experts as they should be. UsageError for a
        call from inside of a `run`.
        """
        with self.lock:
            if self._computing.locked():
                raise UsageError(
                    "2 computations of one model inside each other",
                    "a hook, or a handler of a signal, asked the model while it was computing",
                    "ask when it has ended, or ask another model",
                )
            if self._is_broken_off:
                self.abort()
            self.experts.check_unchanged()
            try:
                with self._computing:
                    self._computing_thread = threading.get_ident()
                    self._is_broken_off = True
                    result = self._run_with_less(run)
                    self._is_broken_off = False
            finally:
                self.steps.wake()
            return result

    def _run_with_less(self, run: Callable[[], _Result]) -> _Result:
        """The result of `run`, begun again with fewer experts wherever a GPU has no memory for it."""
        while True:
            try:
                return run()
            except torch.OutOfMemoryError as error:
                refusal = ". ".join(str(error).split(". ")[:3])
            # Not before: the error holds what has been computed.
            self.abort()
            self.experts.give_up_memory(refusal)

    def compute_step(self, request: StepRequest, compute: Callable[[Sequence[Any]], None]) -> None:
        """Return when the request is done, by `compute` in `alone`, with those of other threads, or by one.

        See SharedSteps.ask; UsageError as of `alone`.
        """
        if self.is_computing_here:
            self.alone(lambda: compute([request]))
        self.steps.ask(request, lambda requests: self.alone(lambda: compute(requests)))

    @property
    def is_computing(self) -> bool:
        """Whether a thread is inside of `alone`."""
        return self._computing.locked()

    @property
    def is_computing_here(self) -> bool:
        """Whether this thread is inside of `alone`."""
        return self.is_computing and self._computing_thread == threading.get_ident()

    def abort(self) -> None:
        """Forget what a computation has begun that will not end. It may have stopped anywhere."""
        # In this order: experts that are as they should be have the memory of weights for images.
        self.experts.abort()
        self.drop_image_weights()

    def read_image_weights(self) -> None:
        """Have weights for images ready that are not always there."""
        if self.image_weights is not None:
            self.image_weights.read()

    def drop_image_weights(self) -> None:
        """Give back the memory of weights that `encode_images` has read; of others, nothing."""
        if self.image_weights is not None:
            self.image_weights.drop()

    @property
    def experts(self) -> ExpertProvider:
        """What computes routed experts; `attach` has brought it."""
        assert self._experts is not None, "no experts have been attached"
        return self._experts

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where inputs are expected."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states; routers and angles are float32 whatever it is."""
        return self.norm.weight.dtype

    @property
    def joins_sequences(self) -> bool:
        """Whether decoding several sequences together gives each the same bits as alone.

        Our kernels for packed weights on the CPU compute each row by itself; torch's products do not. Nor
        do small pages, which one sequence uses or not by the pages that others had read.
        """
        is_exact = self._has_exact_rows and self.experts.has_exact_rows
        return is_exact and self.device.type == "cpu" and self.dtype == torch.float32

    @property
    def attention_way(self) -> AttentionWay:
        """How a chunk of a prompt attends."""
        if self.device.type == "cpu":
            return cpu_attention_way(self.config, str(self.dtype)[6:])
        return gpu_attention_way(has_triton=find_triton(self.device, self._gpu_kernels) is not None)

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids: (tokens,) integers on the host -> (tokens, hidden_size) on the model's device."""
        if self._embeds_on_host:
            return send(self.embed_tokens(token_ids), self.device)
        embedded: Tensor = self.embed_tokens(send(token_ids, self.device))
        return embedded

    def embed_one(self, token_id: int) -> Tensor:
        """As `embed`, (1, hidden_size), of a token that was decoded."""
        if self._embeds_on_host:
            return self.embed(torch.full((1,), token_id, device="cpu"))
        # Filled on the device: a copy would make the host wait for a GPU.
        embedded: Tensor = self.embed_tokens(torch.full((1,), token_id, device=self.device))
        return embedded

    @property
    def _embeds_on_host(self) -> bool:
        """Whether the table lies in RAM beside a GPU, to which only rows of it go."""
        table = self.embed_tokens
        return (table.packed if isinstance(table, PackedEmbedding) else table.weight).is_cpu

    def encode_images(self, images: Sequence[MediaPiece], before_stage: Pause | None = None) -> list[Tensor]:
        """Features of each image, (num_tokens, hidden_size), that replace its placeholders' embeddings.

        `image_weights` are read unless they are in memory, and stay until they are dropped. Where they pass
        through a GPU they do so once for all images. before_stage: is called before each block.
        """
        self.read_image_weights()
        groups = [images[together] for together in tower_passes([one.num_patches for one in images])]
        inputs = (
            (torch.cat([image.pixel_values for image in group]), [image.grid for image in group])
            for group in groups
        )
        encoded: Iterable[Tensor]
        if self.streams_image_weights:
            encoded = run_in_step([self.vision.stages(*one) for one in inputs], before_stage)
        else:
            encoded = (self.vision(*one, before_stage) for one in inputs)
        features: list[Tensor] = []
        for group, states in zip(groups, encoded, strict=True):
            tokens = self.resampler(states, [image.grid for image in group])
            features.extend(tokens.split([image.num_tokens for image in group]))
        return features

    @property
    def streams_image_weights(self) -> bool:
        """Whether vision tower and resampler pass through a GPU while images are encoded."""
        return self.image_weights is not None and self.image_weights.is_streamed

    def encoding_bytes(self, images: Sequence[MediaPiece], passes_at_once: int = 1) -> int:
        """About the memory that `encode_images` takes besides its results (measured, within a tenth).

        With `image_weights` where they are not always there.
        """
        weights = 0 if self.image_weights is None or not images else self.image_weights.budget_bytes
        patch_counts = [image.num_patches for image in images]
        return weights + encoding_bytes(self.config.tower, patch_counts, self.dtype.itemsize, passes_at_once)

    def decode_graphs(self, kv_dtype: torch.dtype) -> DecodeGraphs | None:
        """The graphs of one new cache of this dtype; None where decode is not recorded.

        Layers on the CPU are not recorded. UsageError if no attention kernel serves such a cache.
        """
        num_below = self.host.num_layers
        if self.recorder is None or num_below == len(self.layers):
            return None
        if token_kernel(self.device, kv_dtype, self._gpu_kernels) is None:
            raise UsageError(
                f"a KV cache in {kv_dtype} with {parameter('cuda_graphs', 'on')}",
                f"there is no attention kernel for it on {self.device}, and without one nothing is recorded",
                f"use {parameter('kv_dtype')} int8 or float16, or no {parameter('cuda_graphs')}",
            )
        return DecodeGraphs([*self.layers][num_below:], self.norm, self.recorder)

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        is_vision: Tensor,
        cache: KVCache,
        on_route: RouteHook | None = None,
        graphs: DecodeGraphs | None = None,
        before_layer: Pause | None = None,
    ) -> Tensor:
        """Run new tokens after those in the cache, append them to it, and return their normed last states.

        hidden: (tokens, hidden_size) embeddings or image features; positions: (3, tokens) int64, rows T, H,
        W; is_vision: (tokens,) bool, on the host, which decides the bank of each token. graphs: of this
        cache; they run a single text token. before_layer: is called before each layer of other runs, and may
        raise, as any error breaks off. Returns (tokens, hidden_size), with graphs until the next call.
        """
        num_tokens = hidden.shape[0]
        rows = TokenRows.of(is_vision, self.config.text.banks, hidden.device)
        attention = self._choose_attention(hidden, *self._angles(positions), cache)
        self.experts.begin(rows)
        step = LayerStep(attention, rows, self.experts, on_route)
        if graphs is not None and num_tokens == 1 and not is_vision[0]:
            for layer in islice(self.layers, cache.host_layers):
                hidden = layer(hidden, step)
            normed = graphs.run(hidden, step)
        else:
            normed = self._run_layers(hidden, step, before_layer)
        cache.advance(num_tokens)
        return normed

    def decode_together(self, tokens: Sequence[NextToken], on_route: RouteHook | None = None) -> Tensor:
        """As `forward` of one token of each of these sequences: (sequences, hidden_size).

        The caches are left as they are; `KVCache.advance` follows.
        """
        hidden = self.embed(torch.tensor([one.token_id for one in tokens], device="cpu"))
        positions = send(torch.tensor([[one.position for one in tokens]] * 3, device="cpu"), self.device)
        angles = (one.split(1) for one in self._angles(positions))
        parts = zip(hidden.split(1), *angles, (one.cache for one in tokens), strict=True)
        attention = join_tokens([self._choose_attention(*part) for part in parts])
        is_vision = torch.zeros(len(tokens), dtype=torch.bool, device="cpu")
        rows = TokenRows.of(is_vision, self.config.text.banks, hidden.device, num_sequences=len(tokens))
        self.experts.begin(rows)
        return self._run_layers(hidden, LayerStep(attention, rows, self.experts, on_route))

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self._rope is None or self._rope.frequencies.device != positions.device:
            self._rope = TextRope(self.config.text, positions.device)
        return self._rope.angles(positions)

    def _choose_attention(
        self, hidden: Tensor, cosines: Tensor, sines: Tensor, cache: KVCache
    ) -> AttentionStep:
        above = choose_attention(hidden, cosines, sines, cache, self.attention_way, self._gpu_kernels)
        if not cache.host_layers:
            return above
        return HostAttention.under(above, hidden, (cosines, sines), cache, self.config, self.layers[0])

    def _run_layers(self, hidden: Tensor, step: LayerStep, before_layer: Pause | None = None) -> Tensor:
        for layer in self.layers:
            if before_layer is not None:
                before_layer()
            hidden = layer(hidden, step)
        normed: Tensor = self.norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (tokens, hidden_size) from `forward` -> (tokens, vocab_size) float32, where the head is."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return _score(head, hidden, self.host.has_head).float()


def _score(
    head: Linear | Embedding | PackedLinear | PackedEmbedding | AdaptedLinear, hidden: Tensor, on_host: bool
) -> Tensor:
    if on_host:  # where packed weights take float32
        hidden = receive(hidden)
        weights = head.base if isinstance(head, AdaptedLinear) else head
        hidden = hidden if isinstance(weights, Linear | Embedding) else hidden.float()
    if isinstance(head, Embedding):
        return functional.linear(hidden, head.weight)
    scores: Tensor = head.score(hidden) if isinstance(head, PackedEmbedding) else head(hidden)
    return scores
