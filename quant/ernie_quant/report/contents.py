"""Gathers everything that the report of a quantized checkpoint says; quant_report.json is all of it.

It holds no times of day and no durations: a run that was killed and resumed must give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from ernie_local.checkpoint.packed import expert_layout
from ernie_local.checkpoint.parts import ModelPart, model_parts, stored_tensors
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import Bank, BankKey, ModelConfig, QuantizationConfig
from ernie_quant.expert import ExpertReport, RoutedExpert
from ernie_quant.job import Job
from ernie_quant.measurements import STATISTICS_FILE, read_measurements
from ernie_quant.work import version_identity

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_COLUMNS = "{:<8}{:>6}" + 9 * "{:>9}"
COVERAGE_HEADER = "bank|layer|experts|tokens|none|scarce|least|10 %|median|90 %|most".split("|")


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of one bank in one layer, or in all layers if `layer` is None.

    tokens: of the bank; each visits several experts. unreached: experts without a token. scarce: experts with
    fewer tokens than a matrix has columns, including those without any. quantiles: least, 10 %, median, 90 %
    and most tokens of an expert.
    """

    bank: Bank
    layer: int | None
    num_experts: int
    tokens: int
    unreached: int
    scarce: int
    quantiles: tuple[float, ...]


def measure_coverage(
    reports: Mapping[RoutedExpert, ExpertReport], columns: int, experts_per_token: int
) -> list[Coverage]:
    """For each bank, all layers together and then each one; empty without calibration."""
    rows: list[Coverage] = []
    for bank in dict.fromkeys(bank for _, bank, _ in reports):
        visits: dict[int, list[int]] = {}
        for (layer, own_bank, _), report in reports.items():
            if own_bank == bank:
                visits.setdefault(layer, []).append(report.tokens)
        # The same tokens run through every layer.
        tokens = max(map(sum, visits.values())) // experts_per_token
        everywhere = [count for counts in visits.values() for count in counts]
        by_layer: dict[int | None, list[int]] = {None: everywhere, **dict(sorted(visits.items()))}
        rows += [
            Coverage(
                bank=bank,
                layer=layer,
                num_experts=len(counts),
                tokens=tokens,
                unreached=sum(count == 0 for count in counts),
                scarce=sum(count < columns for count in counts),
                quantiles=tuple(np.quantile(counts, _QUANTILES).tolist()),
            )
            for layer, counts in by_layer.items()
        ]
    return rows


def coverage_cells(row: Coverage) -> tuple[str, ...]:
    """The texts of a row, in the order of COVERAGE_HEADER."""
    layer = "all" if row.layer is None else str(row.layer)
    counts = (row.num_experts, row.tokens, row.unreached, row.scarce, *row.quantiles)
    return (row.bank, layer, *(f"{count:,.0f}" for count in counts))


def table_lines(rows: Sequence[Coverage]) -> Iterator[str]:
    """For a terminal; nothing for no rows."""
    if rows:
        yield _COLUMNS.format(*COVERAGE_HEADER)
    for row in rows:
        yield _COLUMNS.format(*coverage_cells(row))


def unreached_lines(rows: Sequence[Coverage]) -> Iterator[str]:
    """What to warn of: a line for each bank of which layers saw no calibration token."""
    for bank in dict.fromkeys(row.bank for row in rows):
        layers = [row for row in rows if row.bank == bank and row.layer is not None]
        unreached = [str(row.layer) for row in layers if row.unreached == row.num_experts]
        if unreached:
            where = "any layer" if len(unreached) == len(layers) else f"layers {', '.join(unreached)}"
            yield (
                f"no calibration token reached the {bank} experts of {where}: they were quantized without "
                "data; calibrate on samples that are like what the model will be asked"
            )


@dataclass(frozen=True, slots=True)
class ReportContents:
    """Contents for one new checkpoint. parts, source_parts: its parts and those of its source.

    formats, bits: page format and bits a weight of every packed expert; small_formats: of small pages, empty
    without any. experts: reports of calibrated experts, empty without calibration. sensitivity: for each
    layer the KL divergence at the answers when only its experts are rounded; routing_agreement: for each
    layer the share of routing choices that equal the source's; None if not measured.
    """

    source: Mapping[str, str]
    calibration: Mapping[str, str]
    settings: Mapping[str, object]
    versions: str
    parts: Sequence[ModelPart]
    source_parts: Sequence[ModelPart]
    formats: Mapping[RoutedExpert, str]
    bits: Mapping[RoutedExpert, float]
    experts: Mapping[RoutedExpert, ExpertReport]
    coverage: Sequence[Coverage]
    small_formats: Mapping[RoutedExpert, str] = field(default_factory=dict)
    sensitivity: Mapping[int, float] | None = None
    routing_agreement: Mapping[int, float] | None = None

    def to_json(self) -> str:
        """The text of quant_report.json, with one expert a line."""
        head: dict[str, object] = {
            "schema": "ernie-local.quant-report/1",
            "source": self.source,
            "calibration": self.calibration,
            "settings": self.settings,
            "versions": self.versions,
            "parts": [_part(part) for part in self.parts],
            "source_parts": [_part(part) for part in self.source_parts],
            "coverage": [asdict(row) for row in self.coverage],
            "sensitivity": self.sensitivity,
            "routing_agreement": self.routing_agreement,
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in head.items()]
        experts = [json.dumps(self._expert(key), allow_nan=False) for key in self.formats]
        lines.append('"experts": [' + ",".join(f"\n{expert}" for expert in experts) + "]")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _expert(self, key: RoutedExpert) -> dict[str, object]:
        layer, bank, expert = key
        report = self.experts.get(key)
        return {
            "layer": layer,
            "bank": bank,
            "expert": expert,
            "format": self.formats[key],
            "bits_per_weight": self.bits[key],
            **({"small_format": self.small_formats[key]} if self.small_formats else {}),
            **({} if report is None else msgspec.to_builtins(report)),
        }


def gather(
    job: Job,
    config: ModelConfig,
    tables: QuantizationConfig,
    reports: Mapping[RoutedExpert, ExpertReport],
    routing_agreement: Mapping[int, float] | None = None,
) -> ReportContents:
    """Gather the contents for `job.partial`. tables: its formats; config: of the source."""
    text = config.text
    formats = _by_expert(tables.experts)
    return ReportContents(
        source=tables.source,
        calibration=tables.calibration,
        settings=asdict(job.recipe),
        versions=version_identity(job.recipe),
        parts=_parts_of(job.partial, config.packed_by(tables)),
        source_parts=_parts_of(job.source, config),
        formats=formats,
        bits={
            key: _page_bits(name, text.hidden_size, text.bank(key[1]).expert_size)
            for key, name in formats.items()
        },
        experts=reports,
        small_formats=_by_expert(tables.small_experts),
        coverage=measure_coverage(reports, text.hidden_size, text.experts_per_token),
        sensitivity=None
        if job.statistics is None
        else read_measurements(job.partial / STATISTICS_FILE, {}).expert_divergence,
        routing_agreement=routing_agreement,
    )


def _by_expert(table: Mapping[BankKey, Sequence[str]]) -> dict[RoutedExpert, str]:
    return {
        (layer, bank, expert): name
        for (layer, bank), names in table.items()
        for expert, name in enumerate(names)
    }


def _page_bits(page_format: str, hidden_size: int, inner_size: int) -> float:
    page_bytes = expert_layout(page_format, hidden_size, inner_size).page_bytes
    return 8 * page_bytes / (3 * hidden_size * inner_size)


def _parts_of(directory: Path, config: ModelConfig) -> list[ModelPart]:
    return model_parts(stored_tensors(open_checkpoint(directory, config).accounts, config), config)


def _part(part: ModelPart) -> dict[str, object]:
    return {
        "name": part.name,
        "weights": part.weights,
        "bytes": part.num_bytes,
        "bits_per_weight": part.bits_per_weight,
        "formats": part.formats,
        "pages": part.pages,
    }
