"""Everything that the report of a quantized checkpoint tells, gathered once; quant_report.json is all of it.

No times of day and no durations: a run that was killed and gone on with must give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.index import account
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.parts import ModelPart, model_parts, stored_tensors
from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_quant.expert import ExpertReport
from ernie_quant.identity import version_identity
from ernie_quant.job import Job
from ernie_quant.measurements import ExpertKey, read_measurements
from ernie_quant.report.coverage import Coverage, measure_coverage

SCHEMA = "ernie-local.quant-report/1"


@dataclass(frozen=True, slots=True)
class ReportContents:
    """Of one new checkpoint. parts, source_parts: what it and its source consist of.

    formats, bits: page format and bits a weight of every packed expert; small_formats: of their small pages,
    empty where they have none. experts: how the calibrated ones
    came out, empty where nothing was calibrated. sensitivity: by layer, the KL divergence at the answers when
    its experts alone are rounded; routing_agreement: by layer, the share of choices that are those of the
    source; None if not measured.
    """

    source: Mapping[str, str]
    calibration: Mapping[str, str]
    settings: Mapping[str, object]
    versions: str
    parts: Sequence[ModelPart]
    source_parts: Sequence[ModelPart]
    formats: Mapping[ExpertKey, str]
    bits: Mapping[ExpertKey, float]
    experts: Mapping[ExpertKey, ExpertReport]
    coverage: Sequence[Coverage]
    small_formats: Mapping[ExpertKey, str] = field(default_factory=dict)
    sensitivity: Mapping[int, float] | None = None
    routing_agreement: Mapping[int, float] | None = None

    def to_json(self) -> str:
        """The text of quant_report.json, an expert a line."""
        head: dict[str, object] = {
            "schema": SCHEMA,
            "source": dict(self.source),
            "calibration": dict(self.calibration),
            "settings": dict(self.settings),
            "versions": self.versions,
            "parts": [_part(part) for part in self.parts],
            "source_parts": [_part(part) for part in self.source_parts],
            "coverage": [asdict(row) for row in self.coverage],
            "sensitivity": _by_layer(self.sensitivity),
            "routing_agreement": _by_layer(self.routing_agreement),
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in head.items()]
        experts = [json.dumps(self._expert(key), allow_nan=False) for key in self.formats]
        lines.append('"experts": [' + ",".join(f"\n{expert}" for expert in experts) + "]")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _expert(self, key: ExpertKey) -> dict[str, object]:
        layer, bank, expert = key
        report = self.experts.get(key)
        return {
            "layer": layer,
            "bank": bank,
            "expert": expert,
            "format": self.formats[key],
            "bits_per_weight": self.bits[key],
            **({"small_format": self.small_formats[key]} if self.small_formats else {}),
            **({} if report is None else report.values()),
        }


def gather(
    job: Job,
    config: ModelConfig,
    tables: QuantizationConfig,
    reports: Mapping[ExpertKey, ExpertReport],
    routing_agreement: Mapping[int, float] | None = None,
) -> ReportContents:
    """Of the checkpoint in `job.partial`, in the formats of `tables`, from a source that is `config`."""
    packed_config = replace(config, quantization=tables)
    packed = PackedTensors(packed_config)
    formats: dict[ExpertKey, str] = {}
    bits: dict[ExpertKey, float] = {}
    for (layer, bank), names in tables.experts.items():
        layouts = packed.page_layouts(layer, bank)
        for expert, name in enumerate(names):
            layout = layouts[name]
            formats[layer, bank, expert] = name
            bits[layer, bank, expert] = 8 * layout.page_bytes / (3 * layout.hidden_size * layout.inner_size)
    return ReportContents(
        source=tables.source,
        calibration=tables.calibration,
        settings=asdict(job.recipe),
        versions=version_identity(job.recipe),
        parts=_parts_of(job.partial, packed_config),
        source_parts=_parts_of(job.source, config),
        formats=formats,
        bits=bits,
        experts=reports,
        small_formats={
            (layer, bank, expert): name
            for (layer, bank), names in tables.small_experts.items()
            for expert, name in enumerate(names)
        },
        coverage=measure_coverage(reports, config.text.hidden_size, config.text.experts_per_token),
        sensitivity=None
        if job.statistics is None
        else read_measurements(job.statistics, {}).expert_divergence,
        routing_agreement=routing_agreement,
    )


def _parts_of(directory: Path, config: ModelConfig) -> list[ModelPart]:
    accounts = account(directory, read_stored_tensors(directory), config)
    return model_parts(stored_tensors(accounts, config), config)


def _part(part: ModelPart) -> dict[str, object]:
    return {
        "name": part.name,
        "weights": part.weights,
        "bytes": part.num_bytes,
        "bits_per_weight": part.bits_per_weight,
        "formats": dict(part.formats),
        "pages": dict(part.pages),
    }


def _by_layer(values: Mapping[int, float] | None) -> dict[str, float] | None:
    return None if values is None else {str(layer): value for layer, value in values.items()}
