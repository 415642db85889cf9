"""The report: numbers in JSON, one page without network in both themes, a model card; the same bytes."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import MODALITIES, read_config
from ernie_local.verify import verify
from ernie_quant.expert import RoutedExpert
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.report.contents import measure_coverage, table_lines, unreached_lines
from ernie_quant.report.model_card import model_card
from ernie_quant.report.page import html_page
from ernie_quant.report.plots import heat_maps, layer_bars
from tests.report_contents import AUDITED, KEYS, contents, report


def test_coverage_counts_tokens_unreached_and_scarce_experts() -> None:
    rows = contents().coverage
    assert [(row.bank, row.layer) for row in rows] == [
        (bank, layer) for bank in MODALITIES for layer in (None, 1, 2)
    ]
    for row in rows:
        layers = 2 if row.layer is None else 1
        assert row.tokens == (0 + 10 + 20 + 30) // 2
        assert (row.num_experts, row.unreached, row.scarce) == (4 * layers, layers, 2 * layers)
        assert row.quantiles[::2] == (0, 15, 30)
    lines = list(table_lines(rows))
    assert lines[1].split() == ["text", "all", "8", "30", "2", "4", "0", "0", "15", "30", "30"]
    assert len({len(line) for line in lines}) == 1
    assert list(table_lines(measure_coverage({}, 15, 2))) == []


def test_a_bank_without_a_token_is_warned_of() -> None:
    def warned(tokens_of: Callable[[RoutedExpert], int]) -> list[str]:
        return list(unreached_lines(measure_coverage({key: report(tokens_of(key)) for key in KEYS}, 15, 2)))

    assert warned(lambda key: key[2]) == []
    (everywhere,) = warned(lambda key: int(key[1] == "text"))
    assert "reached the vision experts of any layer" in everywhere
    (one_layer,) = warned(lambda key: int(key[:2] != (2, "text")))
    assert "reached the text experts of layers 2:" in one_layer
    assert list(unreached_lines([])) == []


def test_the_json_has_every_expert() -> None:
    value = json.loads(replace(contents(), sensitivity={1: 0.5, 2: 0.25}).to_json())
    assert len(value["experts"]) == len(KEYS)
    assert value["experts"][1] == {
        "layer": 1, "bank": "text", "expert": 1, "format": "w2", "bits_per_weight": 2.5,
        "tokens": 10, "effective_tokens": 5.0, "gate_up_error": 0.11, "down_error": 0.02,
    }  # fmt: skip
    assert value["sensitivity"] == {"1": 0.5, "2": 0.25}
    assert value["routing_agreement"] is None
    assert value["coverage"][0]["unreached"] == 2


class Page(HTMLParser):
    """Tags that are open, links to anything, and images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_the_page_needs_no_network_and_has_each_plot_for_both_themes() -> None:
    text = html_page(
        replace(contents(), sensitivity={1: 0.5, 2: 0.25}, routing_agreement={1: 1.0, 2: 0.9}), AUDITED
    )
    page = Page(text)
    assert page.open == []
    assert "&lt;nano&gt;, quantized" in text
    assert "<nano>" not in text
    assert len(page.sources) == 2 * 8
    for source in page.sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    assert len(set(page.sources)) == 2 * 8
    assert re.findall(r"https?://", text) == []


@pytest.mark.usefixtures("undrawn")
def test_a_name_cannot_become_markup_or_command_a_terminal() -> None:
    name = "<script>alert(1)</script>\x1b[31m\n# [x](y) | `z` & \u202e"
    hostile = replace(contents(), source={"name": name, "a\x1b<b>": name}, versions=name)
    audited = replace(AUDITED, answer=name)
    page = html_page(hostile, audited)
    card = model_card(hostile, audited, "---\nlicense_name: <script>\x1b[31m\n---\n")
    for text in (page, card):
        assert re.findall(r"<script|\x1b|\u202e", text) == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\x0a# [x](y) | `z` &amp; \\u202e" in page
    assert Page(page).open == []
    heading = "# &lt;script&gt;alert(1)&lt;/script&gt;\\\\x1b\\[31m\\\\x0a# \\[x\\](y) \\| \\`z\\` &amp; "
    assert [line for line in card.splitlines() if line.startswith(heading)] != []


@pytest.mark.usefixtures("undrawn")
def test_the_page_names_the_largest_errors_first() -> None:
    cells = Page(html_page(contents(), AUDITED)).cells
    start = cells.index("33.0\u00a0%")  # 30 tokens
    rest = ["33.0\u00a0%", "31.0\u00a0%", "2.0\u00a0%"]
    assert cells[start - 5 : start + 3] == ["1", "text", "3", "w2", "30", *rest]


@pytest.mark.usefixtures("undrawn")
def test_small_pages_have_errors_of_their_own() -> None:
    plain = contents()
    dual = replace(
        plain,
        experts={
            key: msgspec.structs.replace(one, small_gate_up_error=0.4321, small_down_error=0.1234)
            for key, one in plain.experts.items()
        },
        small_formats=dict.fromkeys(KEYS, "w2s"),
    )
    cells = Page(html_page(dual, AUDITED)).cells
    start = cells.index("33.0\u00a0%")
    shares = ["33.0", "31.0", "2.0", "55.5", "43.2", "12.3"]
    assert cells[start : start + 6] == [f"{share}\u00a0%" for share in shares]
    assert "second, small page in w2s" in html_page(dual, AUDITED)
    assert "Small pages lost 55.5\u00a0%." in html_page(dual, AUDITED)
    assert "small page" not in html_page(plain, AUDITED).lower()
    expert = json.loads(dual.to_json())["experts"][1]
    assert (expert["small_format"], expert["small_down_error"]) == ("w2s", 0.1234)
    assert "small" not in plain.to_json()
    assert "second, small page in w2s" in model_card(dual, AUDITED, None)
    assert "small page" not in model_card(plain, AUDITED, None)


def test_without_calibration_the_page_says_so() -> None:
    plain = replace(contents(), experts={}, coverage=[], formats=dict.fromkeys(KEYS, "w4"))
    text = html_page(plain, AUDITED)
    assert Page(text).sources == []
    for told in (text, model_card(plain, AUDITED, None)):
        assert "quantized by gptq (without calibration)" in told
        assert "Not measured, as no expert was calibrated." in told
        assert "lost" not in told


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_plots_have_transparent_ground_and_ink_for_their_theme() -> None:
    plot = heat_maps({key: float(1 + key[2]) for key in KEYS}, "t", "c", "u")
    for png, ink in ((plot.light, 0x22), (plot.dark, 0xDD)):
        values = pixels(png)
        assert values[0, 0, 3] == 0
        assert (values == [ink, ink, ink, 255]).all(-1).sum() > 100


@pytest.mark.parametrize("logarithmic", [False, True])
def test_equal_values_have_equal_colours_in_both_banks(logarithmic: bool) -> None:
    values = pixels(heat_maps(dict.fromkeys(KEYS, 0.25), "t", "c", "u", logarithmic=logarithmic).light)
    row = values[values.shape[0] // 2]
    inks, counts = np.unique(row[row[:, 3] == 255], axis=0, return_counts=True)
    assert counts.max() > 0.7 * row.shape[0], inks


def test_a_logarithmic_map_shows_zeros_in_a_colour_of_their_own() -> None:
    red = [0xD9, 0x53, 0x4F, 255]
    some = {key: float(10 * key[2]) for key in KEYS}
    values = pixels(heat_maps(some, "t", "c", "u", logarithmic=True).light)
    share = (values == red).all(-1).sum() / values[..., 0].size
    assert 0.1 < share < 0.25  # one column of four
    nothing = pixels(heat_maps(dict.fromkeys(KEYS, 0.0), "t", "c", "u", logarithmic=True).light)
    assert (nothing == red).all(-1).sum() / nothing[..., 0].size > 0.5


def test_a_users_matplotlib_settings_change_nothing() -> None:
    import matplotlib

    before = layer_bars({1: 0.5, 2: 1.0}, "t", "c", "u")
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "red"}):
        assert layer_bars({1: 0.5, 2: 1.0}, "t", "c", "u") == before


@pytest.mark.parametrize(
    ("source_card", "front"),
    [
        (None, "---\nlibrary_name: "),
        (
            "---\nlicense: apache-2.0\ntags: [a]\n---\ntext\nlicense: no\n",
            "---\nlicense: apache-2.0\nlibrary_name: ",
        ),
        ("license: mit\n", "---\nlibrary_name: "),
    ],
)
def test_the_card_takes_the_licence_of_the_source(source_card: str | None, front: str) -> None:
    card = model_card(contents(), AUDITED, source_card)
    assert card.startswith(front)
    assert ("SOURCE_README.md" in card) == (source_card is not None)
    assert "| text experts | 800 | 2.50 | 250 bytes |" in card
    assert "30 tokens of samples went to the text experts: 15 to the median expert" in card
    assert "Experts without any: 2 of 8." in card


def test_a_checkpoint_carries_its_report_and_the_card_of_its_source(tmp_path: Path) -> None:
    tables = format_tables(read_config(NANO_DIRECTORY), FormatChoice(experts="w2-w2l"))
    for name in ("one", "two"):
        quantize_checkpoint(Job(NANO_DIRECTORY, tmp_path / name, tables, Recipe("rtn")))
    one, two = tmp_path / "one", tmp_path / "two"
    value = json.loads((one / "quant_report.json").read_text())
    assert {expert["format"] for expert in value["experts"]} == {"w2-w2l"}
    assert len(value["experts"]) == 5 * 2 * 16
    assert sum(part["weights"] for part in value["parts"]) == sum(
        part["weights"] for part in value["source_parts"]
    )
    assert (one / "SOURCE_README.md").read_bytes() == (NANO_DIRECTORY / "README.md").read_bytes()
    checked = verify(one)
    for name in ("README.md", "quant_report.html"):
        text = (one / name).read_text()
        assert "nano, quantized" in text
        assert f"Passed: {checked.num_tensors} tensors, {checked.num_pages} pages and " in text
        assert "Asked about a drawn invoice" in text
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
