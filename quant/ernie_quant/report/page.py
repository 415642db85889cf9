"""Writes quant_report.html: one file, a verdict first, in light and in dark, that needs no network."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import nan

from ernie_local.checkpoint.parts import ModelPart, routed_experts, sum_of_parts
from ernie_local.escapes import printable_line
from ernie_local.sizes import format_bytes
from ernie_quant.audit import AuditResult
from ernie_quant.expert import RoutedExpert
from ernie_quant.report.contents import COVERAGE_HEADER, ReportContents, coverage_cells
from ernie_quant.report.legend import WORDS, format_legend, part_formats
from ernie_quant.report.plots import ReportPlot, heat_maps, layer_bars
from ernie_quant.report.verdict import measured_losses, percent, verdict_lines

_WORST = 20  # experts in the table of the largest losses
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --warning: #c77700; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h1, p, dd, figcaption { overflow-wrap: anywhere; max-width: 54rem; }
.verdict > div { border-left: .3rem solid var(--line); padding: .1rem 0 .1rem .9rem; margin: .7rem 0; }
.verdict > .warning { border-color: var(--warning); } .warning dt::before { content: "\\26a0  "; }
dt { font-weight: 600; } dd { margin: 0; }
.words { display: grid; grid-template-columns: max-content 1fr; gap: .4rem 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
.left, .text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; min-width: 13rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption, .note { opacity: .85; }
@media (max-width: 40rem) { .words { display: block; } .words dd { margin-bottom: .6rem; } }
@media print { .wide { overflow: visible; } figure, tr, .verdict > div { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
"""
# Columns of words, which are wrapped, and of names; all others hold numbers.
_WRAPPED = {"formats", "meaning", "used in", "value"}
_LEFT = {"part", "bank", "format", "setting"}


def html_page(contents: ReportContents, audited: AuditResult) -> str:
    """The page; equal contents give equal text."""
    title = f"{contents.source.get('name', 'a model')}, quantized"
    body = "\n".join(_body(contents, audited))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html_text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _body(contents: ReportContents, audited: AuditResult) -> Iterator[str]:
    yield '<dl class="verdict">'
    for line in verdict_lines(contents, audited):
        mark = ' class="warning"' if line.is_warning else ""
        yield f"<div{mark}><dt>{html_text(line.topic)}</dt><dd>{html_text(line.text)}</dd></div>"
    yield "</dl>\n<h2>Sizes</h2>"
    yield _note(
        "Each part of the model in the source and here. Bits a weight are all bytes of the part, with scales "
        "and padding, divided by its weights."
    )
    yield _table("part|weights|source|here|bits a weight|formats".split("|"), _size_rows(contents))
    yield "<h2>Formats</h2>"
    yield from _formats(contents)
    yield "<h2>Words</h2>"
    words = "".join(f"<dt>{html_text(word)}</dt><dd>{html_text(told)}</dd>\n" for word, told in WORDS.items())
    yield f'<dl class="words">\n{words}</dl>'
    if plots := [_figure(plot) for plot in _plots(contents)]:
        yield "<h2>Experts and layers</h2>"
        yield _note("In a map each cell is one expert: its row is the layer, its column the expert's number.")
        yield from plots
    if losses := measured_losses(contents):
        yield f"<h2>The {min(_WORST, len(losses))} experts that lost most</h2>"
        yield from _worst(contents, losses)
    if contents.coverage:
        yield "<h2>Coverage by calibration tokens</h2>"
        yield _note(
            "tokens: those of the bank; each visits several experts. none: experts without a token. scarce: "
            "experts with fewer tokens than their gate and up matrices have columns, quantized mostly from "
            "the tokens of their whole bank. The last five columns are the tokens of single experts: the "
            "fewest, what 10 % of the experts do not exceed, the median, what 90 % do not exceed, the most."
        )
        yield _table(COVERAGE_HEADER, [coverage_cells(row) for row in contents.coverage])
    yield "<h2>How it was made</h2>"
    yield from _settings(contents)


def _formats(contents: ReportContents) -> Iterator[str]:
    names = contents.formats.values()
    gate_up, down = (Counter(name.split("-")[place] for name in names) for place in (0, -1))
    is_mixed = len(set(names)) > 1
    yield _note(
        "How weights are stored here. Bits a weight include the weight's share of scales and zero points. "
        "Of two joined names, such as w2-w2l, the first is the format of gate and up, the second of down."
        + (" The last two columns count the experts that use a format." if is_mixed else "")
    )
    head = ("format", "meaning", "bits a weight", "used in")
    rows = [
        (row.name, row.meaning, f"{row.bits:.4g}", ", ".join(row.parts))
        + ((f"{gate_up[row.name]:,}", f"{down[row.name]:,}") if is_mixed else ())
        for row in format_legend(contents.parts)
    ]
    yield _table((*head, *(("experts: gate, up", "down") if is_mixed else ())), rows)


def _settings(contents: ReportContents) -> Iterator[str]:
    if contents.experts:
        yield _note(
            "shrinkage: how strongly an expert with few tokens leans on those of its bank. sweeps: passes "
            "that improve the stored numbers after the first. square_weights: whether a token counts by the "
            "square of its router weight."
        )
    else:
        yield _note("shrinkage, sweeps and square_weights matter for the method gptq alone.")
    facts = {
        **{f"source {key}": value for key, value in contents.source.items()},
        **{f"calibration {key}": value for key, value in contents.calibration.items()},
        **contents.settings,
        "made with": contents.versions,
    }
    yield _table(("setting", "value"), [(key, str(value)) for key, value in facts.items()])


def _plots(contents: ReportContents) -> Iterator[ReportPlot]:
    if len(set(contents.formats.values())) > 1:
        told = "Bits a weight of each expert, with scales, zero points and padding."
        yield heat_maps(contents.bits, "Bits a weight", told, "bits")
    reports = contents.experts
    losses = measured_losses(contents)
    red = "" if len(losses) == len(reports) else " Red: not measured, as it saw no token."
    maps = (
        ("Loss", "The loss of each expert: about the sum of the next two maps.", losses),
        (
            "Loss in gate and up",
            "Loss in the two matrices that read a token.",
            {key: reports[key].gate_up_error for key in losses},
        ),
        (
            "Loss in down",
            "Loss in the matrix that makes the output, measured on what the new gate and up produce.",
            {key: reports[key].down_error for key in losses},
        ),
    )
    for title, caption, values in maps if losses else ():
        shown = {key: 100 * values.get(key, nan) for key in reports}
        yield heat_maps(shown, title, caption + red, "% of the power")
    if reports:
        sent = {key: float(report.tokens) for key, report in reports.items()}
        caption = "How many calibration tokens the router sent to each expert. Red: none."
        yield heat_maps(sent, "Calibration tokens", caption, "tokens", logarithmic=True)
        effective = {key: report.effective_tokens for key, report in reports.items()}
        caption = (
            "How many tokens of equal weight would tell as much: an expert that gives most of its tokens a "
            "small weight has few. It is (sum w)^2 / sum w^2 of their weights w: the squared router weight, "
            "with --by-answers times the root of the gradient's length. Red: none, quantized from the "
            "tokens of its bank alone."
        )
        yield heat_maps(effective, "Effective tokens", caption, "tokens", logarithmic=True)
    yield from _layer_plots(contents)


def _layer_plots(contents: ReportContents) -> Iterator[ReportPlot]:
    if contents.sensitivity is not None:
        caption = (
            "How much the answers change when only the experts of one layer are rounded, in a trial before "
            "bits were given out."
        )
        yield layer_bars(contents.sensitivity, "Sensitivity of layers", caption, "KL divergence, nats")
    if contents.routing_agreement is not None:
        drift = {layer: 100 * (1 - share) for layer, share in contents.routing_agreement.items()}
        caption = (
            "How many of the routers' choices differ from those of the source, on the first calibration "
            "samples. A layer routes what the layers before it made of the tokens, so their errors add up."
        )
        yield layer_bars(drift, "Routing drift", caption, "% of the choices")


def _size_rows(contents: ReportContents) -> list[tuple[str, ...]]:
    before = {part.name: format_bytes(part.num_bytes) for part in _with_sums(contents.source_parts)}
    return [
        (
            part.name,
            f"{part.weights:,}",
            before.get(part.name, ""),
            format_bytes(part.num_bytes),
            f"{part.bits_per_weight:.2f}",
            ", ".join(part_formats(part)),
        )
        for part in _with_sums(contents.parts)
    ]


def _with_sums(parts: Sequence[ModelPart]) -> list[ModelPart]:
    routed = routed_experts(parts)
    return [*parts, sum_of_parts("all", parts), *(() if routed is None else (routed,))]


def _worst(contents: ReportContents, losses: Mapping[RoutedExpert, float]) -> Iterator[str]:
    yield _note("In all and by matrix, on the tokens that each expert was calibrated on.")
    small = ("small page: loss", "gate, up", "down") if contents.small_formats else ()
    head = ("layer", "bank", "expert", "format", "tokens", "loss", "gate, up", "down", *small)
    rows = []
    for layer, bank, expert in sorted(losses, key=lambda key: -losses[key])[:_WORST]:
        report = contents.experts[layer, bank, expert]
        shares = (report.loss, report.gate_up_error, report.down_error)
        of_small = (report.small_loss, report.small_gate_up_error, report.small_down_error)
        shown = (percent(share) for share in (*shares, *of_small) if share is not None)
        name = contents.formats[layer, bank, expert]
        rows.append((str(layer), bank, str(expert), name, f"{report.tokens:,}", *shown))
    yield _table(head, rows)


def html_text(text: str) -> str:
    """`text` of others, in an element or an attribute of the page."""
    return escape(printable_line(text))


def _note(text: str) -> str:
    return f'<p class="note">{html_text(text)}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls inside the page where it is wider."""
    classes = [
        ' class="text"' if name in _WRAPPED else ' class="left"' if name in _LEFT else "" for name in head
    ]

    def line(tag: str, cells: Sequence[str]) -> str:
        shown = (f"<{tag}{kind}>{html_text(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    top = f"<thead>{line('th', head)}</thead>"
    return f'<div class="wide" tabindex="0"><table>\n{top}\n<tbody>\n{body}\n</tbody></table></div>'


def _figure(plot: ReportPlot) -> str:
    light, dark = ("data:image/png;base64," + base64.b64encode(p).decode() for p in (plot.light, plot.dark))
    return (
        f"<figure>\n<h3>{html_text(plot.title)}</h3>\n<picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html_text(plot.title)}: {html_text(plot.caption)}"></picture>\n'
        f"<figcaption>{html_text(plot.caption)}</figcaption>\n</figure>"
    )
