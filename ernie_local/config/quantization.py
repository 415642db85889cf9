"""Reads and writes our `quantization_config`: which weights of a checkpoint are packed, and in which format.

A page format is `w4`, or `w2-w2l` where gate and up have another format than down, or `nf4g64` for experts in
another library's format. Only the spelling is checked here; `packing` knows the formats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ernie_local.config.compression import CompressionConfig, read_compression
from ernie_local.config.keys import Keys
from ernie_local.config.model import BankKey, ExpertBank, TextConfig
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import show

METHOD = "ernie_local"
VERSION = 1
_KEY = "quantization_config"
_FORMAT = re.compile(r"w[0-9]{1,2}[a-z]?", re.ASCII)
_PAGE_FORMAT = re.compile(rf"{_FORMAT.pattern}(?:-{_FORMAT.pattern})?", re.ASCII)
_EXPERT_FORMAT = re.compile(rf"{_PAGE_FORMAT.pattern}|[a-z]{{1,8}}[0-9]g[0-9]{{1,5}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """The tables of a packed checkpoint. Weights that no table names are stored as they were.

    experts: for each (layer, bank) the page format of each expert; of all banks of the model, or of none.
    small_experts: the same of a second, smaller page of each expert. matrices: format by the name of a linear
    layer or embedding. gated_mlps: page format by the name of a gated MLP (a dense layer's, or the merged
    shared experts'), which is stored as one page.
    """

    experts: Mapping[BankKey, tuple[str, ...]]
    matrices: Mapping[str, str]
    gated_mlps: Mapping[str, str]
    source: Mapping[str, str] = field(default_factory=dict)  # what it was made from
    calibration: Mapping[str, str] = field(default_factory=dict)
    small_experts: Mapping[BankKey, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The value of `quantization_config`; banks whose experts all have one format name it once."""
        small = {"small_experts": _banks_to_json(self.small_experts)} if self.small_experts else {}
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "experts": _banks_to_json(self.experts),
            **small,
            "matrices": dict(self.matrices),
            "gated_mlps": dict(self.gated_mlps),
            "source": dict(self.source),
            "calibration": dict(self.calibration),
        }


def read_quantization(
    outer: Keys, text: TextConfig
) -> tuple[QuantizationConfig | None, CompressionConfig | None]:
    """The tables of a model with this decoder, and what another tool has quantized; at most one is there.

    ModelUnusable for an unknown method or version.
    """
    if outer.value(_KEY) is None:
        return None, None
    keys = outer.section(_KEY)
    method = keys.value("quant_method")
    if method != METHOD:
        return None, read_compression(keys)
    return _read_tables(outer, keys, text), None


def _read_tables(outer: Keys, keys: Keys, text: TextConfig) -> QuantizationConfig:
    version = keys.value("version")
    # The type too, or true would pass for 1.
    if type(version) is not int or version != VERSION:
        raise ModelUnusable(
            f"{outer.where}: {_KEY} has quant_method {show(METHOD)} version {show(version)}, "
            f"expected version {VERSION}",
            "weights packed by another version cannot be read",
            "use the bfloat16 checkpoint, or one that this version of ernie-local wrote",
        )
    banks = {f"{layer_id}.{bank.name}": (layer_id, bank) for layer_id, bank in text.layer_banks()}
    quantization = QuantizationConfig(
        experts=_experts(keys, "experts", _EXPERT_FORMAT, banks),
        # Only our own formats: one call of an operator takes either page of an expert.
        small_experts=_experts(keys, "small_experts", _PAGE_FORMAT, banks),
        matrices=_texts(keys, "matrices", _FORMAT),
        gated_mlps=_texts(keys, "gated_mlps", _PAGE_FORMAT),
        source=_texts(keys, "source", None),
        calibration=_texts(keys, "calibration", None),
    )
    keys.finish()
    if quantization.small_experts and not quantization.experts:
        raise keys.refuse("small_experts", "names small pages of experts that have no others")
    return quantization


def _banks_to_json(table: Mapping[BankKey, tuple[str, ...]]) -> dict[str, object]:
    return {
        f"{layer}.{bank}": formats[0] if len(set(formats)) == 1 else list(formats)
        for (layer, bank), formats in table.items()
    }


def _experts(
    keys: Keys, key: str, pattern: re.Pattern[str], banks: Mapping[str, tuple[int, ExpertBank]]
) -> dict[BankKey, tuple[str, ...]]:
    """The formats of all banks, or of none. banks: (layer, bank) by the name in the table."""
    table: dict[BankKey, tuple[str, ...]] = {}
    for name, value in keys.mapping(key, {}).items():
        if name not in banks:
            raise keys.refuse(key, f"names {show(name)}, which is no bank of experts of this model")
        layer_id, bank = banks[name]
        formats = [value] * bank.num_experts if isinstance(value, str) else value
        if not isinstance(formats, list) or len(formats) != bank.num_experts:
            raise keys.refuse(
                key, f"has for {name} {show(value)}, expected one format or {bank.num_experts} of them"
            )
        for page_format in formats:
            _check_format(keys, f"{key}.{name}", page_format, pattern)
        table[layer_id, bank.name] = tuple(formats)
    if table and len(table) != len(banks):
        raise keys.refuse(key, f"names {len(table)} banks of experts, the model has {len(banks)}")
    return table


def _texts(keys: Keys, key: str, pattern: re.Pattern[str] | None) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, value in keys.mapping(key, {}).items():
        if pattern is not None:
            _check_format(keys, f"{key}.{name}", value, pattern)
        elif not isinstance(value, str):
            raise keys.refuse(f"{key}.{name}", f"is {show(value)}, a text is expected")
        texts[name] = str(value)
    return texts


def _check_format(keys: Keys, key: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise keys.refuse(key, f"is {show(value)}, the name of a format such as w4 is expected")
