"""Builds the network empty, then fills it tensor by tensor from a checkpoint.

Packed weights stay packed: their layers replace the plain ones. Routed experts come last.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from accelerate import init_empty_weights
from torch import nn

from ernie_local.adapters.tables import AdapterTables
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.mapped_file import MappedFiles, fetch_mapped
from ernie_local.checkpoint.packed import QKV, PackedTensors, known_format
from ernie_local.checkpoint.parts import is_for_images, is_of_layers, stored_tensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig
from ernie_local.errors import DoesNotFit
from ernie_local.experts.budget import GpuBudget
from ernie_local.experts.build import PagingSetup, build_paged_experts, open_page_store
from ernie_local.experts.mapped import MappedExperts, StoredPart
from ernie_local.experts.math import expert_math, gpu_math
from ernie_local.experts.plan import PagingPlan
from ernie_local.experts.resident import PackedExperts
from ernie_local.kernels.arguments import PackedMatrix
from ernie_local.kernels.graphs import Recorder
from ernie_local.kernels.memory import empty_bytes
from ernie_local.loading.gpu_image_weights import GpuImageWeights
from ernie_local.loading.image_weights import ImageWeights
from ernie_local.loading.reads import do_at_once, read_banks, read_into, read_plain_experts
from ernie_local.model.adapted import adapt
from ernie_local.model.attention import SelfAttention
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.host_parts import ALL_ON_GPU, HostParts
from ernie_local.model.layers import PackedEmbedding, PackedGatedMLP, PackedLinear
from ernie_local.model.moe import ExpertProvider, Router
from ernie_local.packing.layout import PageLayout
from ernie_local.packing.page import check_page, check_scales
from ernie_local.planner.weight_bytes import WeightBytes, weights_in_memory
from ernie_local.sizes import CACHE_LINE, aligned, format_bytes

_HOST = torch.device("cpu")


def checkpoint_weights(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, *, in_slots: bool = False
) -> WeightBytes:
    """Exact bytes of all weights in memory: packed as they are, routers in float32, the rest in `dtype`.

    Small pages of experts are not counted: only paging uses them, and reads them from the files. in_slots: as
    of `weights_in_memory`.
    """
    tensors = stored_tensors(checkpoint.accounts, config)
    return weights_in_memory(tensors, config.text, dtype.itemsize, in_slots=in_slots)


def is_mapped(config: ModelConfig, device: torch.device, paging: PagingSetup | None) -> bool:
    """Whether packed weights are mapped, where that can be, and those of layers read in the background."""
    # Paged models share memory with nobody: they give it away when experts need it.
    return paging is None and device.type == "cpu" and config.has_packed_experts


def build_model(
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    paging: PagingSetup | None = None,
    recorder: Recorder | None = None,
    gpu_kernels: str = "auto",
    host: HostParts = ALL_ON_GPU,
    adapter: AdapterTables | None = None,
) -> ErnieModel:
    """A filled model, for inference only. Each tensor is read to where it stays.

    paging: how routed experts are paged; None for all of them in memory. gpu_kernels: what computes packed
    weights on a GPU. host: what lies in RAM beside it. adapter: what is added to products of the weights.
    DoesNotFit for packed weights on a device without code for them, or a GPU with less memory than it
    reported.
    """
    files = MappedFiles() if is_mapped(config, device, paging) else None
    filler = _Filler(checkpoint, config, dtype, device, gpu_kernels, files)
    swaps = paging is not None and paging.swaps_image_weights
    model = filler.build_network(host, swaps_image_weights=swaps)
    if adapter is not None:
        adapt(model, adapter)
    # Experts come last: they can do with less if a GPU turns out to be smaller than it reported.
    experts: ExpertProvider
    if paging is not None:
        store = open_page_store(checkpoint, config, paging.options)
        plan = PagingPlan(store.page_bytes, config.text.experts_per_token)
        math_on = partial(expert_math, checkpoint, config, gpu_kernels=gpu_kernels)
        experts = build_paged_experts(store, plan, math_on, paging)
        if swaps and paging.gpu is not None:
            assert isinstance(model.image_weights, ImageWeights)
            assert isinstance(experts.budget, GpuBudget)
            model.image_weights = GpuImageWeights(
                model.image_weights, model, experts.budget, paging.gpu.device
            )
    elif files is not None:
        is_computing = partial(_is_computing, weakref.ref(model))
        experts = MappedExperts(checkpoint, config, files, filler.later, is_computing)
    elif config.has_packed_experts:
        banks = read_banks(checkpoint, config, device)
        experts = PackedExperts(banks, gpu_math(config, device, gpu_kernels))
    else:
        experts = read_plain_experts(checkpoint, config, dtype, device)
    model.attach(experts, recorder)
    return model


def _is_computing(network: weakref.ref[ErnieModel]) -> bool:
    model = network()
    return model is not None and model.is_computing


def build_without_experts(
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    host: HostParts = ALL_ON_GPU,
) -> ErnieModel:
    """As `build_model`, without routed experts; nothing is mapped."""
    return _Filler(checkpoint, config, dtype, device).build_network(host)


def build_embedder(checkpoint: Checkpoint, config: ModelConfig) -> ErnieModel:
    """Embedding, vision tower and resampler, which come before layers, on the CPU in float32 or packed."""
    filler = _Filler(checkpoint, config, torch.float32, _HOST)
    text = dataclasses.replace(config.text, num_hidden_layers=0, moe_layers=(), tie_word_embeddings=True)
    with init_empty_weights(include_buffers=True):
        model = ErnieModel(dataclasses.replace(config, text=text))
    filler.place_packed(model, lambda name: not name.startswith(("layers.", "lm_head")))
    filler.place_plain(model)
    filler.read()
    return model.eval()


def build_layer(
    checkpoint: Checkpoint, config: ModelConfig, layer_id: int, without: Collection[str] = ()
) -> DecoderLayer:
    """One layer without its routed experts, on the CPU in float32 or packed. Its cache has no other layer.

    without: names of packed matrices and gated MLPs that stay empty, as they are not made yet.
    """
    prefix = f"layers.{layer_id}."
    filler = _Filler(checkpoint, config, torch.float32, _HOST)
    with init_empty_weights(include_buffers=True):
        layer = DecoderLayer(config.text, layer_id, is_packed=config.quantization is not None)
    filler.place_packed(layer, lambda name: name.startswith(prefix) and name not in without, prefix)
    filler.place_plain(layer, f"layers.{layer_id}")
    filler.read()
    layer.self_attn.layer_id = 0
    return layer.eval()


def build_head(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> ErnieModel:
    """A model of which only `logits` works, in the memory of the head; DoesNotFit as from `build_model`."""
    filler = _Filler(checkpoint, config, dtype, device)
    names = ("lm_head", "embed_tokens") if config.text.tie_word_embeddings else ("lm_head",)
    text = dataclasses.replace(config.text, num_hidden_layers=0, moe_layers=())
    with init_empty_weights(include_buffers=True):
        model = ErnieModel(dataclasses.replace(config, text=text))
    filler.place_packed(model, lambda name: name in names)
    # The norm too: its weight tells the model's device and dtype.
    for name in ("norm", "embed_tokens" if model.lm_head is None else "lm_head"):
        filler.place_plain(model.get_submodule(name), name)
    filler.read()
    return model.eval()


class _Filler:
    """Fills modules from a checkpoint: plain tensors in `dtype`, packed ones as they are, on `device`.

    First all have their places, then `read` fills them. later: packed weights of layers, which it does not
    fill where files are mapped.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        gpu_kernels: str = "auto",
        files: MappedFiles | None = None,
    ) -> None:
        """files: to map packed weights from; None to read them."""
        self.checkpoint, self.config, self.dtype, self.device = checkpoint, config, dtype, device
        self.files = files  # None too where they cannot be mapped
        self._reads_later, self.later = files is not None, list[StoredPart]()
        self._plain: list[Callable[[], None]] = []  # reads of plain tensors, which may be large
        self._packed: list[Callable[[], None]] = []
        self.packed, self.tables, self.gpu_kernels = PackedTensors(config), config.quantization, gpu_kernels
        if self.packed.shapes and self.device.type not in ("cpu", "cuda"):
            raise DoesNotFit(
                f"packed weights on {self.device}, only cpu and cuda compute from them",
                "there is no code for packed weights on another device",
                'load with device="cpu"',
            )

    def build_network(self, host: HostParts = ALL_ON_GPU, *, swaps_image_weights: bool = False) -> ErnieModel:
        """A filled model without routed experts. Weights for images that are swapped are not read yet."""
        with init_empty_weights(include_buffers=True):
            model = ErnieModel(self.config, self.gpu_kernels)
        if swaps_image_weights:
            kernels = self.gpu_kernels
            model.image_weights = ImageWeights(self.checkpoint, self.config, model, self.dtype, kernels)
        on_host = self._fill_on_host(model, host)

        def is_wanted(name: str) -> bool:
            return not _is_within(name, on_host) and not (swaps_image_weights and is_for_images(name))

        self.place_packed(model, is_wanted)
        self.place_plain(model)
        self.read()
        return model.eval()

    def _fill_on_host(self, model: ErnieModel, host: HostParts) -> list[str]:
        """Fill what lies in RAM beside a GPU; gives back its modules."""
        model.host = host
        if self.device.type == "cpu" and host == ALL_ON_GPU:
            return []
        layers, words = host.layer_modules, host.word_modules(self.config)
        # The processor's own operators take float32, in which packed weights are no larger.
        layer_dtype = self.dtype if self.tables is None else torch.float32
        for modules, dtype in ((layers, layer_dtype), (words, self.dtype)):
            filler = _Filler(self.checkpoint, self.config, dtype, _HOST)
            filler.place_packed(model, partial(_is_within, modules=modules))
            for module in modules:
                filler.place_plain(model.get_submodule(module), module)
            filler.read()
        return [*layers, *words]

    def read(self) -> None:
        """Fill everything that has a place, but what is for later."""
        plain, packed = self._plain, self._packed
        self._plain, self._packed = [], []  # which refer to this object, and to memory that may be given back
        if self.device.type == "cpu":
            do_at_once(plain + packed)  # large ones first, so that no thread ends much later
            return
        do_at_once(packed)
        for read_plain in plain:  # each passes through memory of the CPU
            read_plain()

    def place_plain(self, model: nn.Module, prefix: str = "") -> None:
        """Give every other parameter a place, for the tensor of that name in a module named `prefix`."""
        for module_name, module in model.named_modules():
            for own_name, empty in list(module.named_parameters(recurse=False)):
                if not empty.is_meta:
                    continue  # its memory is of another kind, and is filled later
                # The router stays in float32, whatever the rest is.
                kept_dtype = empty.dtype if isinstance(module, Router) else self.dtype
                filled = torch.empty(empty.shape, dtype=kept_dtype, device=self.device)
                name = ".".join(filter(None, (prefix, module_name, own_name)))
                if self.packed.replaces(name):
                    continue  # its packed tensor is not wanted
                self._plain.append(partial(read_into, self.checkpoint, name, filled))
                setattr(module, own_name, nn.Parameter(filled, requires_grad=False))

    def place_packed(self, model: nn.Module, is_wanted: Callable[[str], bool], prefix: str = "") -> None:
        """Put packed layers with wanted names into `model`, whose own name is `prefix`."""
        if self.tables is None:
            return
        gated_mlps, matrices = (
            {name: format_name for name, format_name in table.items() if is_wanted(name)}
            for table in (self.tables.gated_mlps, self.tables.matrices)
        )
        places = self._allocate([f"{name}.{value}" for name, value in (gated_mlps | matrices).items()])
        for name, page_format in gated_mlps.items():
            place, layout = places[f"{name}.{page_format}"], self.packed.gated_mlp_layout(name)
            check = partial(_check_gated_mlp, layout=layout, name=name)
            self._add_packed(f"{name}.{page_format}", place, check)
            model.set_submodule(name.removeprefix(prefix), PackedGatedMLP(place, layout, self.gpu_kernels))
        for name, format_name in matrices.items():
            place, (rows, columns) = places[f"{name}.{format_name}"], self.packed.matrix_shape(name)
            check = partial(check_scales, low_bit=known_format(format_name), columns=columns, where=name)
            self._add_packed(f"{name}.{format_name}", place, check)
            matrix = PackedMatrix(place, format_name, rows, self.gpu_kernels)
            parent, _, own = name.removeprefix(prefix).rpartition(".")
            if name == "embed_tokens":
                model.set_submodule(own, PackedEmbedding(matrix, columns, self.dtype))
            elif own == QKV:
                attention = model.get_submodule(parent)
                assert isinstance(attention, SelfAttention), name
                attention.pack_qkv(PackedLinear(matrix))
            else:
                bias = None
                if f"{name}.bias" in self.checkpoint:
                    bias = torch.empty(rows, dtype=self.dtype, device=self.device)
                    self._plain.append(partial(read_into, self.checkpoint, f"{name}.bias", bias))
                # A tied model has had no head until now, so set_submodule would not find it.
                setattr(model.get_submodule(parent), own, PackedLinear(matrix, bias))

    def _allocate(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Places of packed tensors: mapped, or in one allocation, as separate ones waste half a huge page."""
        stored = [self.checkpoint.packed[name] for name in names]
        if self.files is not None:
            try:
                return {one.name: _mapped(one, self.files) for one in stored}
            except OSError as error:
                size = format_bytes(sum(tensor.num_bytes for tensor in stored))
                self.files.notes.append(f"all but experts: {size} are read into memory, not mapped: {error}")
            self.files = None
        sizes = [aligned(tensor.num_bytes) for tensor in stored]
        total, on_host = sum(sizes), self.device.type == "cpu"
        memory = empty_bytes(total) if on_host else torch.empty(total, dtype=torch.uint8, device=self.device)
        places = zip(memory.split(sizes), stored, strict=True)
        return {one.name: place[: one.num_bytes].view(one.shape) for place, one in places}

    def _add_packed(self, name: str, place: torch.Tensor, check: Callable[[torch.Tensor], None]) -> None:
        """Have `place`, on any device, filled with the packed tensor `name`, which `check` looks through."""
        if self._reads_later and is_of_layers(name):
            self.later.append(StoredPart(name, None, place, self.files is not None, partial(check, place)))
        else:
            self._packed.append(partial(self._read_and_check, name, place, check))

    def _read_and_check(self, name: str, place: torch.Tensor, check: Callable[[torch.Tensor], None]) -> None:
        read = self._read_packed(name, place)
        check(read)
        place.copy_(read)

    def _read_packed(self, name: str, place: torch.Tensor) -> torch.Tensor:
        """The packed tensor `name` on the host, to be checked: in its place, if that is there."""
        if self.files is not None:
            if fetch_mapped(place):
                self.checkpoint.on_read(place.nbytes)
            else:  # a read says what is wrong, or fetches it on an old Linux
                self.checkpoint.read_packed(name, torch.empty_like(place))
            return place
        host = place if place.is_cpu else torch.empty(place.shape, dtype=torch.uint8)
        self.checkpoint.read_packed(name, host)
        return host


def _is_within(name: str, modules: Sequence[str]) -> bool:
    """Whether a module of this name is one of them, or a part of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _check_gated_mlp(page: torch.Tensor, layout: PageLayout, name: str) -> None:
    """page: (1, page_bytes) uint8."""
    check_page(page[0], layout, f"the page of {name}")


def _mapped(stored: StoredTensor, files: MappedFiles) -> torch.Tensor:
    """OSError for a tensor that cannot be mapped."""
    if stored.offset % CACHE_LINE:
        raise OSError(f"{stored} does not begin at a multiple of {CACHE_LINE} bytes")
    place = files.content([stored])[stored.offset : stored.offset + stored.num_bytes]
    return place.view(stored.shape)
