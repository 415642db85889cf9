"""Computes packed experts from the files they lie in, mapped into memory, while they are still being read.

Packed weights of layers that are no experts are read in the same way, before them; a forward waits for all of
those. Nothing is copied: a second process shares the memory, and a second start finds the pages there. Each
page is checked before it is computed with for the first time, others while nothing is computed. What cannot
be mapped is read into memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch

from ernie_local.checkpoint.mapped_file import MappedFiles, fetch_mapped
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import BankKey, ModelConfig
from ernie_local.experts.background import BackgroundReader
from ernie_local.experts.gpu_memory import out_of_memory
from ernie_local.experts.keys import UNIT_BYTES, ExpertKey
from ernie_local.experts.math import page_call
from ernie_local.kernels.experts import packed_experts
from ernie_local.kernels.memory import empty_bytes
from ernie_local.model.kv_cache import CacheMemory
from ernie_local.model.moe import RoutedTokens, TokenRows
from ernie_local.packing.page import check_page
from ernie_local.sizes import format_bytes


class StoredPart(NamedTuple):
    """Packed weights in the files, the memory that they are to be in, and what checks them there.

    row: of the tensor; None for all of it. check: raises ModelUnusable if the memory holds damaged weights.
    """

    tensor_name: str
    row: int | None
    memory: torch.Tensor  # uint8, contiguous
    is_mapped: bool
    check: Callable[[], None]

    def fetch(self, checkpoint: Checkpoint) -> None:
        """Bring the weights into their memory. ModelUnusable for what is cut off."""
        if not (self.is_mapped and fetch_mapped(self.memory)):
            # A read says what is wrong where memory could not; on an old Linux it fetches what is mapped.
            into = torch.empty_like(self.memory) if self.is_mapped else self.memory
            checkpoint.read_packed(self.tensor_name, into, self.row)


class BankPages(NamedTuple):
    """The pages of a bank. memory: (units, UNIT_BYTES) uint8; places: (experts,) int64, see ExpertsCall."""

    memory: torch.Tensor
    places: torch.Tensor


class MappedExperts:
    """An ExpertProvider over packed pages on the processor. Reading begins at once, layer by layer."""

    takes_shared_page = True
    has_exact_rows = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        files: MappedFiles,
        dense: Sequence[StoredPart],
        is_computing: Callable[[], bool],
    ) -> None:
        """checkpoint: may be closed afterwards. files: all that the model computes from.

        dense: are read before experts, and a forward waits for them. is_computing: whether the model does; it
        must not keep the model alive.
        """
        builder = _Builder(Checkpoint(checkpoint.accounts), config, files)
        self.banks: dict[BankKey, BankPages] = {
            (layer_id, bank.name): builder.place(layer_id, bank.name)
            for layer_id, bank in config.text.layer_banks()
        }
        self.pages, self._files = builder.pages, files
        self._dense = [part.tensor_name for part in dense]
        keys: list[ExpertKey | str] = [*self._dense, *self.pages]
        parts = dict(zip(keys, [*dense, *self.pages.values()], strict=True))
        self._not_mapped = builder.not_mapped
        self._preferred: Collection[str] = ()
        self.reader = BackgroundReader[ExpertKey | str](
            {key: part.memory.nbytes for key, part in parts.items()},
            partial(_fetch, parts, builder.checkpoint),
            partial(_check, parts),
            builder.checkpoint.close,
            is_computing,
        )
        weakref.finalize(self, self.reader.stop)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages of experts."""
        return sum(page.memory.nbytes for page in self.pages.values())

    def describe(self) -> list[str]:
        """Which weights are not mapped, and why; see ExpertProvider.describe."""
        experts = [
            f"experts: {format_bytes(num_bytes)} are read into memory of their own, not mapped: {reason}"
            for reason, num_bytes in self._not_mapped.items()
        ]
        return experts + self._files.notes

    def check_unchanged(self) -> None:
        """ModelUnusable for files that were written to meanwhile; see ExpertProvider.check_unchanged."""
        self._files.check_unchanged()

    def begin(self, rows: TokenRows) -> None:
        """Read first what the forward needs. Waits for all but experts; ModelUnusable for damaged weights."""
        if self.reader.is_complete:
            return
        if self._preferred != rows.by_bank.keys():
            self._preferred = rows.by_bank.keys()
            self.reader.prefer(self._is_preferred)
        self.reader.wait(self._dense)

    def _is_preferred(self, key: ExpertKey | str) -> bool:
        return isinstance(key, str) or key.bank in self._preferred

    def abort(self) -> None:
        """Nothing: a forward leaves nothing behind, and reading goes on."""

    def make_room(self, owner: object, num_bytes: int) -> None:
        """Nothing: experts give no memory away."""

    def give_up_memory(self, refusal: str) -> None:
        """OutOfMemory: experts are files of the system."""
        raise out_of_memory(refusal)

    def cache_memory(self) -> CacheMemory | None:
        """None: a KV cache has its own memory."""

    def compute(self, tokens: RoutedTokens) -> torch.Tensor:
        """See ExpertProvider.compute. Waits for pages that are not there yet; ModelUnusable for a bad one."""
        if not self.reader.is_complete:
            chosen = set(tokens.expert_ids.flatten().tolist())
            self.reader.wait([ExpertKey(tokens.layer_id, tokens.bank, expert_id) for expert_id in chosen])
        pages = self.banks[tokens.layer_id, tokens.bank]
        return packed_experts(page_call(tokens, pages.memory, pages.places))

    def wait_until_resident(self) -> None:
        """Return when everything has been read and checked; ModelUnusable for damaged weights."""
        self.reader.wait_for_all()

    def close(self) -> None:
        """End reading. What has been read can still be computed with."""
        self.reader.close()


_Parts = Mapping[ExpertKey | str, StoredPart]


def _fetch(parts: _Parts, checkpoint: Checkpoint, key: ExpertKey | str) -> None:
    parts[key].fetch(checkpoint)


def _check(parts: _Parts, key: ExpertKey | str) -> None:
    parts[key].check()


class _Builder:
    """Finds a place in memory for each bank: in the file where it lies, or in memory of its own."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, files: MappedFiles) -> None:
        self.checkpoint = checkpoint
        self.pages: dict[ExpertKey, StoredPart] = {}
        self._files = files
        self.not_mapped: dict[str, int] = {}  # bytes, by the reason
        self._packed = PackedTensors(config)

    def place(self, layer_id: int, bank: str) -> BankPages:
        """The memory of a bank, whose pages are noted."""
        layouts = self._packed.page_layouts(layer_id, bank)
        located = self._packed.locate_experts(layer_id, bank)
        sizes = [self.checkpoint.packed[name].shape[1] for name, _ in located]
        try:
            memory, offsets = self._map(located)
            is_mapped = True
        except OSError as error:
            self.not_mapped[str(error)] = self.not_mapped.get(str(error), 0) + sum(sizes)
            memory, offsets = empty_bytes(sum(sizes)), [0, *accumulate(sizes[:-1])]
            is_mapped = False
        for expert_id, ((name, row), offset) in enumerate(zip(located, offsets, strict=True)):
            layout = layouts[name.rpartition(".")[2]]
            page = memory[offset : offset + sizes[expert_id]]
            check = partial(check_page, page, layout, f"page {row} of {name}")
            key = ExpertKey(layer_id, bank, expert_id)
            self.pages[key] = StoredPart(name, row, page, is_mapped, check)
        units = memory[: len(memory) // UNIT_BYTES * UNIT_BYTES].view(-1, UNIT_BYTES)
        return BankPages(units, torch.tensor(offsets, dtype=torch.int64) // UNIT_BYTES)

    def _map(self, located: Sequence[tuple[str, int]]) -> tuple[torch.Tensor, list[int]]:
        """The file of a bank, and where its pages begin there. OSError for a bank that cannot be mapped."""
        tensors = {name: self.checkpoint.packed[name] for name, _ in located}
        if any(stored.offset % UNIT_BYTES for stored in tensors.values()):
            raise OSError(f"pages do not begin at multiples of {UNIT_BYTES} bytes")
        content = self._files.content(tensors.values())
        return content, [tensors[name].offset + row * tensors[name].shape[1] for name, row in located]
