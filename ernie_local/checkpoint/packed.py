"""Maps the tables of `quantization_config` to the names, shapes and page layouts of packed tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ernie_local.checkpoint.names import NUMBER, PROJECTIONS
from ernie_local.checkpoint.shapes import ExpectedShapes, TensorShape
from ernie_local.config import Bank, BankKey, ModelConfig, QuantizationConfig
from ernie_local.errors import ModelUnusable
from ernie_local.packing.formats import COLUMN_STEP, FORMATS, LowBitFormat
from ernie_local.packing.layout import ForeignLayout, PageLayout, find_foreign

QKV = "qkv_proj"
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"
_QKV_PARTS = ("q_proj", "k_proj", "v_proj")
# What may be packed. Query, key and value weights are one matrix: they are always read together.
_MATRIX = re.compile(
    rf"layers\.{NUMBER}\.self_attn\.(?:{QKV}|o_proj)|{_EMBEDDING}|{_HEAD}"
    rf"|vision\.blocks\.{NUMBER}\.(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
)
_GATED_MLP = re.compile(rf"layers\.{NUMBER}\.(?:mlp|moe\.shared_experts)")
_EXPERTS = re.compile(rf"(small_)?experts\.({NUMBER})\.([a-z]+)\.([^.]+)")


@dataclass(frozen=True, slots=True)
class ExpertPages:
    """What the name of a packed tensor of routed experts says. small: it holds small pages."""

    small: bool
    layer_id: int
    bank: Bank
    page_format: str

    @property
    def name(self) -> str:
        """The tensor's name."""
        table = "small_experts" if self.small else "experts"
        return f"{table}.{self.layer_id}.{self.bank}.{self.page_format}"


def expert_pages(name: str) -> ExpertPages | None:
    """What the packed tensor `name` holds; None if it is no tensor of routed experts."""
    match = _EXPERTS.fullmatch(name)
    return match and ExpertPages(match[1] is not None, int(match[2]), match[3], match[4])


def expert_layout(page_format: str, hidden_size: int, inner_size: int) -> PageLayout | ForeignLayout:
    """The layout of a routed expert's page, which may be in another library's format, such as `nf4g64`."""
    foreign = find_foreign(page_format)
    if foreign is None:
        return page_layout(page_format, hidden_size, inner_size)
    _check_columns(f"experts of {inner_size} x {hidden_size} are", page_format, hidden_size, inner_size)
    return ForeignLayout(foreign, hidden_size, inner_size)


def page_layout(page_format: str, hidden_size: int, inner_size: int) -> PageLayout:
    """The layout that `w4` or `w2-w2l` names; ModelUnusable for an unknown format or an unsuitable size."""
    _check_columns(f"experts of {inner_size} x {hidden_size} are", page_format, hidden_size, inner_size)
    return PageLayout(*page_formats(page_format), hidden_size, inner_size)


def _check_columns(subject: str, format_name: str, *columns: int) -> None:
    if any(number % COLUMN_STEP for number in columns):
        raise ModelUnusable(
            f"{subject} said to be packed as {format_name}",
            f"packed matrices have a multiple of {COLUMN_STEP} columns",
            "check that config.json and the weights belong together",
        )


def page_formats(page_format: str) -> tuple[LowBitFormat, LowBitFormat]:
    """The formats of gate and up, and of down, from `w2-w2l` or from one name for both."""
    gate_up, _, down = page_format.partition("-")
    return known_format(gate_up), known_format(down or gate_up)


def known_format(name: str) -> LowBitFormat:
    """The format that a checkpoint names; ModelUnusable if there is none."""
    if name not in FORMATS:
        raise ModelUnusable(
            f"quantization_config names the format {name}, known are {', '.join(FORMATS)}",
            "the checkpoint was written by a newer version, or config.json was changed",
            "update ernie-local",
        )
    return FORMATS[name]


class PackedTensors:
    """All packed tensors of the model that `config` describes; none where it is not quantized."""

    def __init__(self, config: ModelConfig) -> None:
        """ModelUnusable for a name in the tables that the model lacks, or a shape that cannot be packed."""
        self._text = config.text
        self._tables = config.quantization or QuantizationConfig({}, {}, {})
        self._expected = ExpectedShapes(config)
        # By the tensor's name, which is the same here and in the file.
        self.shapes: dict[str, TensorShape] = dict(self._all_shapes())

    def replaces(self, name: str) -> bool:
        """Whether the plain tensor `name` (ours) is stored packed, and so has no tensor of its own."""
        if name.startswith("experts."):
            return bool(self._tables.experts)
        stem, _, suffix = name.rpartition(".")
        parent, _, own = stem.rpartition(".")
        if suffix != "weight":
            return False
        if own in _QKV_PARTS and f"{parent}.{QKV}" in self._tables.matrices:
            return True
        return stem in self._tables.matrices or (own in PROJECTIONS and parent in self._tables.gated_mlps)

    def gated_mlp_layout(self, name: str) -> PageLayout:
        """Layout of the page of the gated MLP `name`, a key of the table."""
        known = _GATED_MLP.fullmatch(name) is not None
        shape = self._expected.shape(f"{name}.gate_proj.weight") if known else None
        if shape is None:
            raise _unknown("gated_mlps", name)
        inner_size, hidden_size = shape
        return page_layout(self._tables.gated_mlps[name], hidden_size, inner_size)

    def page_layouts(
        self, layer_id: int, bank: Bank, *, small: bool = False
    ) -> dict[str, PageLayout | ForeignLayout]:
        """Layouts of the pages of a bank, or of its small pages, by page format; KeyError if it has none."""
        formats = self._formats(small=small)[layer_id, bank]
        inner_size = self._text.bank(bank).expert_size
        return {
            name: expert_layout(name, self._text.hidden_size, inner_size) for name in dict.fromkeys(formats)
        }

    def layout_of(self, name: str) -> PageLayout | ForeignLayout | None:
        """Layout of the pages in the packed tensor `name`; None if it is a matrix."""
        stem, _, format_name = name.rpartition(".")
        if stem in self._tables.gated_mlps:
            return self.gated_mlp_layout(stem)
        pages = expert_pages(name)
        if pages is None:
            return None
        return self.page_layouts(pages.layer_id, pages.bank, small=pages.small)[format_name]

    def locate_experts(self, layer_id: int, bank: Bank, *, small: bool = False) -> list[tuple[str, int]]:
        """Tensor and row of the page of each expert of a bank, or of its small page; KeyError without any."""
        counts: dict[str, int] = {}
        places: list[tuple[str, int]] = []
        for page_format in self._formats(small=small)[layer_id, bank]:
            row = counts.get(page_format, 0)
            counts[page_format] = row + 1
            places.append((ExpertPages(small, layer_id, bank, page_format).name, row))
        return places

    def _formats(self, *, small: bool) -> Mapping[BankKey, tuple[str, ...]]:
        return self._tables.small_experts if small else self._tables.experts

    def _check_small_pages(self) -> None:
        """ModelUnusable for a small page that is larger than the expert's other one."""
        for (layer_id, bank), formats in self._tables.small_experts.items():
            small, large = (self.page_layouts(layer_id, bank, small=small) for small in (True, False))
            pairs = list(zip(formats, self._tables.experts[layer_id, bank], strict=True))
            for one, other in dict.fromkeys(pairs):
                num_bytes, of_other = small[one].page_bytes, large[other].page_bytes
                if num_bytes > of_other:
                    expert_id = pairs.index((one, other))
                    raise ModelUnusable(
                        f"quantization_config: {bank} expert {expert_id} of layer {layer_id} has a small "
                        f"page of {num_bytes} bytes ({one}) beside one of {of_other} ({other})",
                        "a small page is read in place of the other because it takes less",
                        "check that config.json is the one that was written with the weights",
                    )

    def _all_shapes(self) -> Iterator[tuple[str, TensorShape]]:
        self._check_small_pages()
        for small in (False, True):
            formats = self._formats(small=small)
            for layer_id, bank in self._text.layer_banks() if formats else ():
                for name, layout in self.page_layouts(layer_id, bank.name, small=small).items():
                    count = formats[layer_id, bank.name].count(name)
                    yield ExpertPages(small, layer_id, bank.name, name).name, (count, layout.page_bytes)
        for name, page_format in self._tables.gated_mlps.items():
            yield f"{name}.{page_format}", (1, self.gated_mlp_layout(name).page_bytes)
        for name, format_name in self._tables.matrices.items():
            rows, columns = self.matrix_shape(name)
            _check_columns(f"{name} of {rows} x {columns} is", format_name, columns)
            yield f"{name}.{format_name}", (known_format(format_name).matrix_bytes(rows, columns),)

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of the packed matrix `name`, a key of the table."""
        if _MATRIX.fullmatch(name) is None:
            raise _unknown("matrices", name)
        parent, _, own = name.rpartition(".")
        # A tied head may have a packed copy of its own, in fewer bits than the embedding.
        plain = _EMBEDDING if name == _HEAD and self._text.tie_word_embeddings else name
        parts = [f"{parent}.{part}" for part in _QKV_PARTS] if own == QKV else [plain]
        rows = columns = 0
        for part in parts:
            shape = self._expected.shape(f"{part}.weight")
            if shape is None:
                raise _unknown("matrices", name)
            rows, columns = rows + shape[0], shape[1]
        return rows, columns


def _unknown(table: str, name: str) -> ModelUnusable:
    return ModelUnusable(
        f"quantization_config: {table} names {name}, which this model cannot have packed",
        "config.json describes a model without it",
        "check that config.json and the weights come from the same checkpoint",
    )
