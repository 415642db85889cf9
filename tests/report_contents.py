"""Contents of a report for tests: two layers with two banks of four experts each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ernie_local.checkpoint.parts import ModelPart
from ernie_local.config import MODALITIES
from ernie_quant.audit import AuditResult
from ernie_quant.expert import ExpertReport, RoutedExpert
from ernie_quant.report import page
from ernie_quant.report.contents import ReportContents, measure_coverage
from ernie_quant.report.plots import ReportPlot

AUDITED = AuditResult(92, 166, 3 << 20, "What is the total?", "12 EUR", "12 EUR")
KEYS: list[RoutedExpert] = [
    (layer, bank, expert) for layer in (1, 2) for bank in MODALITIES for expert in range(4)
]


def report(tokens: int) -> ExpertReport:
    return ExpertReport(tokens, tokens / 2, 0.01 * (1 + tokens), 0.02)


def contents() -> ReportContents:
    """Two layers; text expert e of a layer has 10 e tokens."""
    reports = {key: report(10 * key[2]) for key in KEYS}
    return ReportContents(
        source={"name": "<nano>", "identity": "abc"},
        calibration={"sequences": "5"},
        settings={"method": "gptq"},
        versions="ernie-local 0",
        parts=[ModelPart("text experts", 800, 250, Counter(w2=800), Counter(w2=8))],
        source_parts=[ModelPart("text experts", 800, 1600, Counter(bf16=800))],
        formats={key: "w2" if key[2] else "w4" for key in KEYS},
        bits={key: 2.5 if key[2] else 4.5 for key in KEYS},
        experts=reports,
        coverage=measure_coverage(reports, columns=15, experts_per_token=2),
    )


@contextmanager
def plots_left_out() -> Iterator[None]:
    """Inside, pages of reports have titles and captions of plots and nothing drawn: 16 take many seconds."""

    def leave_out(_values: Any, title: str, caption: str, _unit: str, **_options: Any) -> ReportPlot:
        return ReportPlot(title, caption, b"", b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "heat_maps", leave_out)
        patch.setattr(page, "layer_bars", leave_out)
        yield
