"""The verdict agrees with the reports of experts, the legend with the formats, and no column is cut."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ernie_local.checkpoint.parts import ModelPart
from ernie_local.config import MODALITIES
from ernie_local.packing.formats import FORMATS
from ernie_local.packing.layout import find_foreign
from ernie_quant.expert import ExpertReport, RoutedExpert
from ernie_quant.report.contents import ReportContents, measure_coverage
from ernie_quant.report.legend import format_legend
from ernie_quant.report.model_card import model_card
from ernie_quant.report.page import html_page
from ernie_quant.report.verdict import percent, verdict_lines
from tests.report_contents import AUDITED, KEYS, contents

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def varied() -> ReportContents:
    """All errors differ. Experts 0 saw no token: the errors in their reports, the largest, count nowhere."""
    rng = np.random.default_rng(7)
    reports = {
        key: ExpertReport(100 * key[2], 50.0, *(rng.uniform(0.01, 0.1, 2).tolist() if key[2] else (0.8, 0.9)))
        for key in KEYS
    }
    return replace(contents(), experts=reports, coverage=measure_coverage(reports, 15, 2))


def told(one: ReportContents, topic: str) -> str:
    (text,) = (line.text for line in verdict_lines(one, AUDITED) if line.topic == topic)
    return text


@pytest.mark.usefixtures("undrawn")
def test_the_verdict_has_the_numbers_of_the_reports() -> None:
    agreement = {1: 0.99, 2: 0.95}
    one = replace(varied(), routing_agreement=agreement, sensitivity={1: 0.5, 2: 0.25})
    experts = [expert for expert in json.loads(one.to_json())["experts"] if expert["tokens"]]
    losses = np.array([expert["gate_up_error"] + expert["down_error"] for expert in experts])

    def average(name: str, value: object) -> str:
        return percent(losses[[expert[name] == value for expert in experts]].mean())

    distance, places = told(one, "How far from its source"), told(one, "Where it lost")
    assert f"On average an expert lost {percent(losses.mean())} of the power" in distance
    for bank in MODALITIES:
        assert f"{bank} experts {average('bank', bank)}" in distance
    assert "4 experts were not measured" in distance
    assert "3.0\u00a0% differ from those of the source, in layer 2 most (5.0\u00a0%)" in distance
    worst = experts[int(losses.argmax())]
    place = f"{worst['bank']} expert {worst['expert']} of layer {worst['layer']}"
    assert f"{place}: {percent(losses.max())}." in places
    means = {layer: average("layer", layer) for layer in (1, 2)}
    first, second = sorted(means, key=lambda layer: -float(means[layer].split("\u00a0")[0]))
    assert f"layer {first} ({means[first]} on average), layer {second} ({means[second]}" in places
    assert "layer 1 (0.5 nats" in places
    identity = told(one, "What it is")
    assert "It takes 250 bytes, 15.6\u00a0% of the 1.6 KiB of its source: 2.50 bits" in identity
    assert "calibrated on 5 samples" in identity
    page = html_page(one, AUDITED)
    assert page.index("On average an expert lost") < page.index("<table")


def test_adapters_in_the_weights_are_named() -> None:
    one = varied()
    named = replace(one, source={**one.source, "adapters": "style times 0.5 (abc)"})
    added = "<nano> with adapters added to its weights, style times 0.5 (abc), quantized"
    assert added in told(named, "What it is")
    assert "adapters" not in told(one, "What it is")


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100.0 %"), (0.0392, "3.9 %"), (0.0026, "0.26 %"), (0.00004, "0.004 %")]
)
def test_a_share_keeps_two_digits(share: float, text: str) -> None:
    assert percent(share) == text.replace(" ", "\u00a0")


@pytest.mark.usefixtures("undrawn")
def test_a_bank_without_tokens_has_no_loss_and_is_warned_of() -> None:
    reports = {
        key: replace_tokens(report, 0) if key[1] == "vision" else replace_tokens(report, 100)
        for key, report in varied().experts.items()
    }
    one = replace(varied(), experts=reports, coverage=measure_coverage(reports, 15, 2))
    distance = told(one, "How far from its source")
    assert "text experts" in distance
    assert "vision experts" not in distance
    (calibration,) = (line for line in verdict_lines(one, AUDITED) if line.topic == "Calibration")
    assert calibration.is_warning
    assert "No calibration token reached the vision experts of any layer" in calibration.text
    assert "tokens of samples went to the vision experts" not in calibration.text
    assert "Red: not measured" in html_page(one, AUDITED)
    nothing = {key: replace_tokens(report, 0) for key, report in reports.items()}
    none = replace(one, experts=nothing, coverage=measure_coverage(nothing, 15, 2))
    assert "no calibration token reached an expert" in told(none, "How far from its source")
    assert "experts that lost most" not in html_page(none, AUDITED)


def replace_tokens(report: ExpertReport, tokens: int) -> ExpertReport:
    return msgspec.structs.replace(report, tokens=tokens)


def test_coverage_of_every_expert_is_no_warning() -> None:
    reports = {key: replace_tokens(report, 100) for key, report in varied().experts.items()}
    one = replace(varied(), experts=reports, coverage=measure_coverage(reports, 15, 2))
    assert [line.topic for line in verdict_lines(one, AUDITED) if line.is_warning] == []
    assert "Experts with" not in told(one, "Calibration")
    scarce = replace(one, coverage=measure_coverage(reports, 101, 2))
    assert "lean on those of their bank: 8 of 8" in told(scarce, "Calibration")


def test_the_check_says_whether_the_first_answer_is_right() -> None:
    right = verdict_lines(contents(), AUDITED)[-1]
    assert right.text.startswith("Passed: 92 tensors, 166 pages and 3.0 MiB of files")
    assert "it answered \u201c12 EUR\u201d, which is right." in right.text
    wrong = verdict_lines(contents(), replace(AUDITED, answer="7 EUR"))[-1]
    assert "it answered \u201c7 EUR\u201d, right is \u201c12 EUR\u201d." in wrong.text
    silent = verdict_lines(contents(), replace(AUDITED, answer=None, why_not_asked="no room"))[-1]
    assert silent.text.endswith("No question was asked: no room.")
    assert [line.is_warning for line in (right, wrong, silent)] == [False, True, False]


@pytest.mark.usefixtures("undrawn")
def test_page_and_card_tell_the_same_verdict() -> None:
    one = varied()
    page, card = html_page(one, AUDITED), model_card(one, AUDITED, None)
    for line in verdict_lines(one, AUDITED):
        text = line.text.replace("'", "&#x27;").replace("<nano>", "&lt;nano&gt;")
        assert text in page
        assert line.text.replace("<nano>", "&lt;nano&gt;") in card


@pytest.mark.parametrize("name", [*FORMATS, "nf4g64", "qint4g128", "qint2g32"])
def test_the_legend_has_the_facts_of_the_format(name: str) -> None:
    found = FORMATS.get(name) or find_foreign(name)
    assert found is not None
    (row,) = format_legend([ModelPart("text experts", 1, 1, Counter({name: 1}))])
    assert (row.name, row.bits, row.parts) == (name, found.nominal_bits, ("text experts",))
    assert {str(found.bits), str(found.group_size)} <= set(re.findall(r"\d+", row.meaning))


@pytest.mark.usefixtures("undrawn")
def test_the_legend_lists_exactly_the_formats_that_occur() -> None:
    parts = [
        ModelPart("text experts", 800, 250, Counter({"w2-w2l": 700, "w3": 100})),
        ModelPart("resampler", 10, 20, Counter(bf16=8, w8=2)),
        ModelPart("routers", 10, 40, Counter(f32=10)),
    ]
    rows = format_legend(parts)
    assert [row.name for row in rows] == ["f32", "bf16", "w8", "w3", "w2l", "w2"]
    assert [row.bits for row in rows[:2]] == [32, 16]
    page = html_page(replace(contents(), parts=parts), AUDITED)
    formats = page.split("<h2>Formats</h2>")[1].split("</thead>")[1].split("</table>")[0]
    assert re.findall(r'<tr><td class="left">([^<]*)</td>', formats) == [row.name for row in rows]


@pytest.mark.usefixtures("undrawn")
def test_mixed_formats_are_counted_by_matrix() -> None:
    formats = {key: ("w2-w2l", "w2", "w4", "w4")[key[2]] for key in KEYS}
    used = Counter(formats.values())
    page = html_page(
        replace(contents(), formats=formats, parts=[ModelPart("text experts", 800, 250, used, used)]), AUDITED
    )
    found = re.findall(
        r'<td class="left">(w\w+)</td>.*?<td>(\d+)</td><td>(\d+)</td></tr>',
        page.split("<h2>Formats</h2>")[1].split("</table>")[0],
    )
    assert found == [("w4", "8", "8"), ("w2l", "0", "4"), ("w2", "8", "4")]
    assert "experts: gate, up" not in html_page(
        replace(contents(), formats=dict.fromkeys(KEYS, "w4")), AUDITED
    )


class Layout(HTMLParser):
    """Classes of the open elements around each table, and of each cell by the name of its column."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.around: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.around.append(self.open[-1])
        if tag == "div":
            self.open.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self.open.pop()


@pytest.mark.usefixtures("undrawn")
def test_every_table_scrolls_by_itself_and_long_texts_wrap() -> None:
    page = html_page(full_size(), AUDITED)
    around = Layout(page).around
    assert around == ["wide"] * 5
    assert ".wide { overflow-x: auto; }" in page
    assert "td.text { white-space: normal; overflow-wrap: anywhere;" in page
    assert "figure img { max-width: 100%;" in page
    cells = re.findall(r"<td( class=\"text\")?>([^<]*)</td>", page)
    assert [text for kind, text in cells if len(text) > 30 and not kind] == []


def full_size() -> ReportContents:
    """As of the published model with everything at once: mixed bits, small pages, millions of tokens."""
    names = [f"{gate_up}-{down}" for gate_up in FORMATS for down in FORMATS if gate_up != down]
    keys: list[RoutedExpert] = [
        (layer, bank, expert) for layer in range(1, 28) for bank in MODALITIES for expert in range(64)
    ]
    formats = {key: names[number % len(names)] for number, key in enumerate(keys)}
    reports = {
        key: ExpertReport(9_000_000 + key[2], 4_000_000.5, 0.0321, 0.0123 + key[0] / 1000, 0.2, 0.1)
        for key in keys
    }
    used = Counter(names)
    parts = [
        ModelPart(f"{bank} experts", 22_649_241_600, 7_247_757_312, used, used, is_routed=True)
        for bank in MODALITIES
    ]
    share = dict.fromkeys(range(1, 28), 0.987)
    return ReportContents(
        source={"name": "ERNIE-4.5-VL-28B-A3B-" + "x" * 80, "identity": "0123456789abcdef" * 4},
        calibration={"method": "gptq", "sequences": "100000"},
        settings={"method": "gptq", "square_weights": True},
        versions="ernie-local 0.1.0, torch 2.13.0+cpu",
        parts=parts,
        source_parts=[
            ModelPart(part.name, part.weights, 2 * part.weights, Counter(bf16=1)) for part in parts
        ],
        formats=formats,
        bits={key: 2.0 + key[2] % 5 for key in keys},
        experts=reports,
        coverage=measure_coverage(reports, 2560, 6),
        small_formats=dict.fromkeys(keys, "w2s"),
        sensitivity=share,
        routing_agreement=share,
    )


_MEASURE = """<script>addEventListener("load", () => {
  const cut = [...document.querySelectorAll(".wide")].filter(box => box.scrollWidth > box.clientWidth);
  const width = document.documentElement;
  document.body.textContent = `cut ${cut.length}, beyond ${Math.max(0, width.scrollWidth - innerWidth)}`;
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize(("width", "cut"), [(1280, "0"), (500, "[1-9]")])
def test_a_browser_shows_every_column_at_1280_pixels(width: int, cut: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    page = tmp_path / "page.html"
    page.write_text(html_page(full_size(), AUDITED) + _MEASURE, encoding="utf-8")
    options = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync dump-dom"
    )
    command = [
        BROWSER,
        *(f"--{option}" for option in options.split()),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1200",
        page.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    # A narrow window scrolls tables, never the page.
    assert re.search(rf"<body>cut {cut}, beyond 0</body>", shown), shown[-300:]
