"""The command `ernie-local calibrate`: measures once what bits are worth, for later runs of `quantize`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ernie_cli.calibration_samples import SampleOptions, check_samples, draw_sequences
from ernie_cli.console import Console
from ernie_cli.options import CommonOptions, lora_option, path_argument, source_argument
from ernie_cli.settings import efficiency_cores
from ernie_cli.signals import telling_what_is_kept


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(SampleOptions, CommonOptions):
    """What was said on the command line."""

    source: str = source_argument()
    out: Path = path_argument(metavar="FILE", help="A new file, such as statistics.json.")
    lora: tuple[str, ...] = lora_option(
        help="Add a LoRA adapter to the weights before they are measured, times SCALE; may be repeated."
    )


@dataclass
class LayerObject:
    """What one layer loses when it is rounded: KL divergence at the answers, in nats per position."""

    layer: int
    dense_divergence: float  #: With its attention and its shared experts or MLP in w4.
    expert_divergence: float | None  #: With its routed experts in w2; null in a dense layer.
    unvisited_text_experts: int  #: Text experts that received no token.
    unvisited_vision_experts: int  #: Vision experts that received no token.


@dataclass
class CalibrateResult:
    """One object, whatever the end of the run."""

    out: str | None = None  #: The file, as given.
    tokens: dict[str, int] | None = None  #: Number of tokens of the samples: `text` and `vision`.
    positions: int | None = None  #: Positions whose next token belongs to an answer.
    layers: list[LayerObject] = field(default_factory=list)  #: One for each layer.
    head_divergence: float | None = None  #: The same with the head in w4.


def calibrate(options: CalibrateOptions, result: CalibrateResult) -> None:
    """Measure what bits are worth in each expert and layer, for `quantize --statistics FILE`.

    The model runs once, unquantized, over the first samples; for every layer a copy of all tokens goes
    through a rounded version. `quantize` measures by itself where no file is named; its samples must be the
    same.
    """
    from ernie_cli.progress import UnitProgress, downloaded
    from ernie_local.adapters.source import AdapterSource
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.checkpoint.index import compression_notes
    from ernie_local.checkpoint.reader import open_checkpoint
    from ernie_local.config import read_config
    from ernie_local.loading.options import use_threads
    from ernie_quant.hub_source import hub_identity
    from ernie_quant.place import check_new_file
    from ernie_quant.probe import measurements_in

    console = Console(quiet=options.as_json)
    check_samples(options, "gptq")
    check_new_file(options.out)
    directory = resolve_model(downloaded(options.source, console))
    with console.telling_warnings():
        use_threads(None, efficiency_cores=efficiency_cores(None))
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        for note in compression_notes(config, checkpoint.accounts):
            console.note(note)
    with telling_what_is_kept(lambda: f"nothing is kept: {options.out} is written when all is measured"):
        sequences = draw_sequences(directory, options, console)
        with UnitProgress(console) as progress:
            identity = hub_identity(options.source, directory)
            lora = [AdapterSource.parse(one) for one in options.lora]
            measured = measurements_in(options.out, directory, sequences, progress.show, identity, lora)
    result.out = str(options.out)
    result.tokens = {str(bank): count for bank, count in measured.tokens.items()}
    result.positions = measured.positions
    result.head_divergence = measured.head_divergence
    unvisited = Counter((one.layer, one.bank) for one in measured.experts if one.tokens == 0)
    result.layers = [
        LayerObject(
            layer_id,
            divergence,
            measured.expert_divergence.get(layer_id),
            unvisited[layer_id, "text"],
            unvisited[layer_id, "vision"],
        )
        for layer_id, divergence in measured.dense_divergence.items()
    ]
    console.show(_calibration_lines(result, measured.probe_format))


def _calibration_lines(result: CalibrateResult, probe_format: str) -> Iterator[str]:
    """A line for each layer: what rounding it costs at the answers, and how many experts saw no token."""
    tokens = result.tokens or {}
    counts = [f"{count:,} {bank} tokens" for bank, count in tokens.items()]
    # Tokens are those of banks of experts, which a dense model does not have.
    yield ", ".join(filter(None, (" and ".join(counts), f"{result.positions:,} answer positions")))
    yield f"{'layer':>5}  {f'experts {probe_format}':>12}  {'others w4':>12}  experts without a token"
    for one in result.layers:
        experts, unvisited = "dense", ""
        if one.expert_divergence is not None:
            experts = f"{one.expert_divergence:.6f}"
            missed = {"text": one.unvisited_text_experts, "vision": one.unvisited_vision_experts}
            unvisited = "  " + ", ".join(f"{bank} {missed[bank]}" for bank in tokens)
        yield f"{one.layer:>5}  {experts:>12}  {one.dense_divergence:>12.6f}{unvisited}"
    yield f" head  {'':>12}  {result.head_divergence:>12.6f}"
