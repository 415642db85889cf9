"""quant_report.html: the report for people, one file that needs no network, in light and in dark.

Knows how a page is written; plots are plots.py's, numbers contents.py's.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape

from ernie_local.checkpoint.parts import ModelPart, routed_experts, sum_of_parts
from ernie_local.sizes import format_bytes
from ernie_quant.expert import ExpertReport
from ernie_quant.measurements import ExpertKey
from ernie_quant.report.contents import ReportContents
from ernie_quant.report.coverage import cells, header
from ernie_quant.report.plots import Plot, heat_maps, layer_bars

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
    """The whole page; the same contents give the same text."""
    title = f"{contents.source.get('name', 'a model')}, quantized"
    body = "\n".join(_body(contents))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
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
        yield f'<p class="note">All {len(contents.formats):,} experts have the format {escape(kinds[0])}.</p>'
    if contents.small_formats:
        names = ", ".join(sorted(set(contents.small_formats.values())))
        yield f'<p class="note">Each has a second, small page beside that, in {escape(names)}.</p>'
    if not contents.experts:
        yield '<p class="note">Made without calibration, so nothing was measured for single experts.</p>'
    yield from map(_figure, _plots(contents))
    if contents.coverage:
        yield "<h2>Coverage by calibration tokens</h2>"
        yield (
            '<p class="note">none: experts that no token visits; scarce: those with fewer visits than their '
            "gate and up matrices have columns, quantized mostly from their bank's second moments.</p>"
        )
        yield _table(header(), [cells(row) for row in contents.coverage])
    if contents.experts:
        yield f"<h2>The {min(_WORST, len(contents.experts))} experts with the largest errors</h2>"
        small = ("small: gate, up", "small: down") if contents.small_formats else ()
        head = ("layer", "bank", "expert", "format", "tokens", "gate, up", "down", *small)
        yield _table(head, _worst(contents))


def _plots(contents: ReportContents) -> Iterator[Plot]:
    if len(set(contents.formats.values())) > 1:
        yield heat_maps(contents.bits, "Bits a weight", "With scales, zeros and padding.")
    yield from _expert_plots(contents.experts)
    if contents.sensitivity is not None:
        caption = "KL divergence at the answers, in nats a position, with the layer's experts alone rounded."
        yield layer_bars(contents.sensitivity, "Sensitivity of layers", caption)
    if contents.routing_agreement is not None:
        drift = {layer: 1 - share for layer, share in contents.routing_agreement.items()}
        yield layer_bars(drift, "Routing drift", "Share of the routers' choices that are not the source's.")


def _expert_plots(reports: Mapping[ExpertKey, ExpertReport]) -> Iterator[Plot]:
    lost = "Share of the power of the outputs that was lost, over the second moments that were used."
    sent = "How many the router sent to each expert; red: none."
    weighted = "(sum w)^2 / sum w^2 of these tokens' squared router weights w; red: made from the bank alone."
    kinds: list[tuple[str, str, Callable[[ExpertReport], float], bool]] = [
        ("Calibration tokens", sent, lambda report: report.tokens, True),
        ("Effective tokens", weighted, lambda report: report.effective_tokens, True),
        ("Error of gate and up", lost, lambda report: report.gate_up_error, False),
        ("Error of down", lost, lambda report: report.down_error, False),
    ]
    for title, caption, value, logarithmic in kinds if reports else ():
        values = {key: value(report) for key, report in reports.items()}
        yield heat_maps(values, title, caption, logarithmic=logarithmic)


def _size_rows(contents: ReportContents) -> list[tuple[str, ...]]:
    before = {part.name: part for part in contents.source_parts}
    rows = [_size_row(part, before.get(part.name)) for part in contents.parts]
    rows.append(_size_row(sum_of_parts("all", contents.parts), sum_of_parts("all", contents.source_parts)))
    routed = routed_experts(contents.parts)
    if routed is not None:
        rows.append(_size_row(routed, routed_experts(contents.source_parts)))
    return rows


def _size_row(part: ModelPart, before: ModelPart | None) -> tuple[str, ...]:
    return (
        part.name,
        f"{part.weights:,}",
        "" if before is None else format_bytes(before.num_bytes),
        format_bytes(part.num_bytes),
        f"{part.bits_per_weight:.2f}",
        ", ".join(name for name, _ in (part.pages or part.formats).most_common()),
    )


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    top = f"<thead>{line('th', head)}</thead>"
    return f'<div class="wide"><table>\n{top}\n<tbody>\n{body}\n</tbody></table></div>'


def _figure(plot: Plot) -> str:
    light, dark = ("data:image/png;base64," + base64.b64encode(p).decode() for p in (plot.light, plot.dark))
    return (
        f"<figure>\n<h3>{escape(plot.title)}</h3>\n<image>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(plot.title)}: {escape(plot.caption)}"></image>\n'
        f"<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"
    )
