"""Writes the report of a quantized checkpoint: quant_report.json, quant_report.html and README.md.

`contents` gathers everything and `verdict` judges it; `page`, with `plots` and `legend`, and `model_card`
write it.
"""

from __future__ import annotations

from pathlib import Path

from ernie_local.files import replaced
from ernie_quant.audit import AuditResult
from ernie_quant.report.contents import ReportContents
from ernie_quant.report.model_card import SOURCE_CARD, model_card
from ernie_quant.report.page import html_page

_JSON, _PAGE, _CARD = "quant_report.json", "quant_report.html", "README.md"


def write_numbers(directory: Path, contents: ReportContents) -> None:
    """Write quant_report.json into `directory`. Before the audit, whose hashes include it."""
    _write(directory, {_JSON: contents.to_json()})


def write_report(directory: Path, contents: ReportContents, audited: AuditResult, source: Path) -> None:
    """Write the page and the card into `directory`, and a copy of the source's own README.md."""
    card = source / _CARD
    source_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    texts = {_CARD: model_card(contents, audited, source_card), _PAGE: html_page(contents, audited)}
    if source_card is not None:
        texts[SOURCE_CARD] = source_card
    _write(directory, texts)


def _write(directory: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        with replaced(directory / name) as new:
            new.write_text(text, encoding="utf-8")
