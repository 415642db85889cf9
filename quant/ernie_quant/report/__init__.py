"""Writes the report of a quantized checkpoint: quant_report.json, quant_report.html and README.md.

`contents` gathers everything, `page` and `model_card` write it.
"""

from __future__ import annotations

from pathlib import Path

from ernie_quant.report.contents import ReportContents
from ernie_quant.report.model_card import SOURCE_CARD, model_card
from ernie_quant.report.page import html_page

_JSON, _PAGE, _CARD = "quant_report.json", "quant_report.html", "README.md"


def write_report(directory: Path, contents: ReportContents, source: Path) -> None:
    """Write the three files into `directory`, and a copy of the source's own README.md."""
    card = source / _CARD
    source_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    if source_card is not None:
        (directory / SOURCE_CARD).write_text(source_card, encoding="utf-8")
    (directory / _CARD).write_text(model_card(contents, source_card), encoding="utf-8")
    (directory / _JSON).write_text(contents.to_json(), encoding="utf-8")
    (directory / _PAGE).write_text(html_page(contents), encoding="utf-8")
