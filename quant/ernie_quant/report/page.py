"""Writes quant_report.html: one file with plots, in light and in dark, that needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ernie_local.checkpoint.parts import ModelPart, routed_experts, sum_of_parts
from ernie_local.escapes import printable_line
from ernie_local.sizes import format_bytes
from ernie_quant.expert import ExpertReport, RoutedExpert
from ernie_quant.report.contents import COVERAGE_HEADER, ReportContents, coverage_cells

_DOTS_PER_INCH = 130
_WIDTH = 9.0  # inches
_INK = {"light": "#222222", "dark": "#dddddd"}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_NOTHING = "#d9534f"  # experts without a token, in logarithmic maps
_LINE = {"light": "#1f5fa8", "dark": "#7ab8f5"}


@dataclass(frozen=True, slots=True)
class ReportPlot:
    """One plot: PNG files for both themes, and its title and caption."""

    title: str
    caption: str
    light: bytes
    dark: bytes


def heat_maps(
    values: Mapping[RoutedExpert, float], title: str, caption: str, *, logarithmic: bool = False
) -> ReportPlot:
    """A map for each bank, with one colour scale. logarithmic: zeros have a colour of their own."""
    banks = list(dict.fromkeys(bank for _, bank, _ in values))
    layers = sorted({layer for layer, _, _ in values})
    num_experts = 1 + max(expert for _, _, expert in values)
    rows = {layer: row for row, layer in enumerate(layers)}
    maps = {bank: np.full((len(layers), num_experts), np.nan) for bank in banks}
    for (layer, bank, expert), value in values.items():
        maps[bank][rows[layer], expert] = np.nan if logarithmic and value <= 0 else value
    known = np.concatenate([found[np.isfinite(found)] for found in maps.values()])
    lowest, highest = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=_NOTHING)

    def draw(figure: Figure, _theme: str) -> None:
        axes = figure.subplots(1, len(banks), squeeze=False, sharey=True)[0]
        # One norm for all maps: where all values are equal, the colour bar widens it for every map.
        norm = LogNorm(lowest, highest) if logarithmic else Normalize(lowest, highest)
        for axis, bank in zip(axes, banks, strict=True):
            image = axis.imshow(maps[bank], cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
            axis.set_title(f"{bank} experts")
            axis.set_xlabel("expert")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("layer")
        step = -(-len(layers) // 14)
        axes[0].set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        figure.colorbar(image, ax=list(axes), fraction=0.05, pad=0.02)

    return _render(draw, 1.6 + 0.13 * max(len(layers), 8), title, caption)


def layer_bars(values: Mapping[int, float], title: str, caption: str) -> ReportPlot:
    """One bar for each layer; the axis begins at 0."""

    def draw(figure: Figure, theme: str) -> None:
        axis = figure.subplots()
        axis.bar(list(values), list(values.values()), color=_LINE[theme], width=0.8)
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)

    return _render(draw, 2.6, title, caption)


def _render(draw: Callable[[Figure, str], None], height: float, title: str, caption: str) -> ReportPlot:
    images: dict[str, bytes] = {}
    for theme, ink in _INK.items():
        # Defaults first: a user's matplotlibrc must not change the bytes of a checkpoint.
        with matplotlib.style.context(["default", {**dict.fromkeys(_INKED, ink), "font.size": 9.0}]):
            figure = Figure(figsize=(_WIDTH, height), dpi=_DOTS_PER_INCH, layout="constrained")
            draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
        images[theme] = buffer.getvalue()
    return ReportPlot(title, caption, images["light"], images["dark"])


_WORST = 20  # experts in the table of the largest errors
_STYLE = """
:root { color-scheme: light dark; --line: #8885; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, .note { opacity: .8; } code { overflow-wrap: anywhere; }
"""


def html_page(contents: ReportContents) -> str:
    """The page; equal contents give equal text."""
    title = f"{contents.source.get('name', 'a model')}, quantized"
    body = "\n".join(_body(contents))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html_text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _body(contents: ReportContents) -> Iterator[str]:
    yield "<h2>Sizes</h2>"
    yield _table(("part", "weights", "source", "here", "bits a weight", "formats"), _size_rows(contents))
    yield "<h2>How it was made</h2>"
    facts = {
        **{f"source {key}": value for key, value in contents.source.items()},
        **{f"calibration {key}": value for key, value in contents.calibration.items()},
        **contents.settings,
        "made with": contents.versions,
    }
    yield _table(("setting", "value"), [(key, str(value)) for key, value in facts.items()])
    yield "<h2>Experts</h2>"
    kinds = sorted(set(contents.formats.values()))
    if len(kinds) == 1:
        told = html_text(f"All {len(contents.formats):,} experts have the format {kinds[0]}.")
        yield f'<p class="note">{told}</p>'
    if contents.small_formats:
        names = ", ".join(sorted(set(contents.small_formats.values())))
        yield f'<p class="note">Each has a second, small page in {html_text(names)}.</p>'
    if not contents.experts:
        yield '<p class="note">Made without calibration, so there are no measurements of single experts.</p>'
    yield from map(_figure, _plots(contents))
    if contents.coverage:
        yield "<h2>Coverage by calibration tokens</h2>"
        yield (
            '<p class="note">none: experts without a token; scarce: experts with fewer tokens than their '
            "gate and up matrices have columns, quantized mostly from the second moments of their bank.</p>"
        )
        yield _table(COVERAGE_HEADER, [coverage_cells(row) for row in contents.coverage])
    if contents.experts:
        yield f"<h2>The {min(_WORST, len(contents.experts))} experts with the largest errors</h2>"
        small = ("small: gate, up", "small: down") if contents.small_formats else ()
        head = ("layer", "bank", "expert", "format", "tokens", "gate, up", "down", *small)
        yield _table(head, _worst(contents))


def _plots(contents: ReportContents) -> Iterator[ReportPlot]:
    if len(set(contents.formats.values())) > 1:
        yield heat_maps(contents.bits, "Bits a weight", "With scales, zeros and padding.")
    lost = "Share of the outputs' power that was lost, over the second moments that were used."
    sent = "Tokens routed to each expert; red: none."
    weighted = "(sum w)^2 / sum w^2 of their squared router weights w; red: quantized from the bank alone."
    kinds: list[tuple[str, str, Callable[[ExpertReport], float], bool]] = [
        ("Calibration tokens", sent, lambda report: report.tokens, True),
        ("Effective tokens", weighted, lambda report: report.effective_tokens, True),
        ("Error of gate and up", lost, lambda report: report.gate_up_error, False),
        ("Error of down", lost, lambda report: report.down_error, False),
    ]
    for title, caption, value, logarithmic in kinds if contents.experts else ():
        values = {key: value(report) for key, report in contents.experts.items()}
        yield heat_maps(values, title, caption, logarithmic=logarithmic)
    if contents.sensitivity is not None:
        caption = (
            "KL divergence at the answers, in nats a position, when only the layer's experts are rounded."
        )
        yield layer_bars(contents.sensitivity, "Sensitivity of layers", caption)
    if contents.routing_agreement is not None:
        drift = {layer: 1 - share for layer, share in contents.routing_agreement.items()}
        caption = "Share of routing choices that differ from those of the source."
        yield layer_bars(drift, "Routing drift", caption)


def _size_rows(contents: ReportContents) -> list[tuple[str, ...]]:
    before = {part.name: format_bytes(part.num_bytes) for part in _with_sums(contents.source_parts)}
    return [
        (
            part.name,
            f"{part.weights:,}",
            before.get(part.name, ""),
            format_bytes(part.num_bytes),
            f"{part.bits_per_weight:.2f}",
            ", ".join(name for name, _ in (part.pages or part.formats).most_common()),
        )
        for part in _with_sums(contents.parts)
    ]


def _with_sums(parts: Sequence[ModelPart]) -> list[ModelPart]:
    routed = routed_experts(parts)
    return [*parts, sum_of_parts("all", parts), *(() if routed is None else (routed,))]


def _worst(contents: ReportContents) -> list[tuple[str, ...]]:
    ranked = sorted(
        contents.experts.items(), key=lambda item: -max(item[1].gate_up_error, item[1].down_error)
    )
    return [
        (
            str(layer),
            bank,
            str(expert),
            contents.formats[layer, bank, expert],
            f"{report.tokens:,}",
            f"{report.gate_up_error:.4f}",
            f"{report.down_error:.4f}",
            *(
                f"{error:.4f}"
                for error in (report.small_gate_up_error, report.small_down_error)
                if error is not None
            ),
        )
        for (layer, bank, expert), report in ranked[:_WORST]
    ]


def html_text(text: str) -> str:
    """`text` of others, in an element or an attribute of the page."""
    return escape(printable_line(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html_text(text)}</{tag}>" for text in texts) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    top = f"<thead>{line('th', head)}</thead>"
    return f'<div class="wide"><table>\n{top}\n<tbody>\n{body}\n</tbody></table></div>'


def _figure(plot: ReportPlot) -> str:
    light, dark = ("data:image/png;base64," + base64.b64encode(p).decode() for p in (plot.light, plot.dark))
    return (
        f"<figure>\n<h3>{html_text(plot.title)}</h3>\n<picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html_text(plot.title)}: {html_text(plot.caption)}"></picture>\n'
        f"<figcaption>{html_text(plot.caption)}</figcaption>\n</figure>"
    )
