"""The command `ernie-local verify`: checks that a checkpoint is whole. Imports nothing heavy before it
runs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_cli.failures import spell_options
from ernie_cli.json_object import fill_result
from ernie_cli.options import (
    CommonOptions,
    ComputeOptions,
    load_options,
    model_argument,
    option,
    ram_option,
    reserve_option,
    size_option,
    template_option,
)
from ernie_local.errors import UsageError, parameter
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ernie_local.model_files import ModelFiles
    from ernie_local.verify.golden import GoldenOutcome
    from ernie_local.verify.golden_file import GoldenPrompts


_OF_GOLDEN = ("variant", "ram", "reserve", "vram")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ComputeOptions, CommonOptions):
    """What was said on the command line. All but `model` and `golden` are for `golden`."""

    model: str = model_argument(default="nano")
    golden: bool = option(
        "--golden",
        default=False,
        help="Also compare answers with known ones: those of the published Thinking weights, or "
        "those of golden.json in the model's folder.",
    )
    variant: str | None = template_option()
    ram: str | None = ram_option()
    reserve: str | None = reserve_option()
    vram: str | None = size_option(help="With --device cuda: memory of the GPU to use.")


@dataclass
class FindingObject:
    """A fault. `file`, `tensor` and `page` are null where the fault has none."""

    file: str | None
    tensor: str | None  #: Its name in the file.
    page: int | None  #: Its row in the tensor.
    what: str
    why: str
    hint: str


@dataclass
class GoldenObject:
    """How the model meets one known answer."""

    name: str
    num_ids: int  #: Known ids of the answer.
    agreed: int  #: Of these, how many the model finds likeliest, each after the known ones before it.
    first_other: int | None  #: Index of the first id where it chooses another; null for none.
    expected: str  #: The text of the known id there.
    chosen: str  #: The text of the id that it chooses there.
    gap: float  #: How much larger the logit of the chosen one is; below 0.25 rounding may explain it.
    skipped: str | None  #: Why it was not tried; null where it was.


@dataclass
class VerifyResult:
    """One object, whatever the end of the run.

    What is checked: config.json; that every tensor of the model is there once, in its shape and type; that
    plain weights are finite numbers up to 2^20, beyond which what is computed from them overflows; the header
    and the checksum of every page, and the scales of every page and packed matrix; the second copy of a tied
    head; that tokenizer, chat template, image processor and generation_config.json can be read and belong to
    the model; that the chat template of the files writes what ours does (else `--template file` asks by it);
    and, if there is a `hashes.json`, size and SHA-256 of every file in it.
    `quantize` writes `hashes.json` over all files that a download by `hf:` brings (not README.md and
    quant_report.html, which may be changed). Only the hashes show a page in the place of another one, and
    changed codes, whole scales and zeros of a packed matrix outside of pages.
    """

    directory: str | None = None  #: Where the model lies.
    tensors: int | None = None
    """Tensors that the model of config.json has, each there once in its shape; 0 if they are not."""
    pages: int | None = None  #: Pages of experts and gated MLPs that were checked.
    bytes: int | None = None  #: Of all files that were read.
    files: dict[str, str] = field(default_factory=dict)  #: SHA-256 of each file as it is now, by name.
    compared: int | None = None  #: Files that `hashes.json` knows; 0 where a checkpoint has none.
    notes: list[str] = field(default_factory=list)
    """Texts that are no faults: a checkpoint without hashes, files that were added later."""
    findings: list[FindingObject] = field(default_factory=list)
    """All faults in the order in which they were met, of one matrix, page or plain tensor only the first.
    Empty with `ok` false when the model was not found; otherwise `error` is the first of them, with exit code
    4."""
    golden: list[GoldenObject] = field(default_factory=list)  #: With `--golden`, one for each known answer.
    suspicion: str | None = None  #: What to suspect where an answer is another one.


def verify_checkpoint(options: VerifyOptions, result: VerifyResult) -> None:
    """Read a whole checkpoint once: hashes, tensors, pages, numbers, tokenizer and processor.

    Exit code 4 and the first fault where something is wrong. Needs little memory, whatever the model's size,
    but for --golden, which loads the model.
    """
    from ernie_cli.progress import UnitProgress, downloaded
    from ernie_local.checkpoint.hub import resolve_model

    _check_options(options)
    console = Console(quiet=options.as_json)
    directory = resolve_model(downloaded(options.model, console))
    result.directory = str(directory)
    golden = _find_golden(directory) if options.golden else None
    with UnitProgress(console) as progress:
        from ernie_local.verify import verify as verify_directory  # with torch, which takes a while

        found = verify_directory(directory, progress.show)
    result.tensors, result.pages, result.bytes = found.num_tensors, found.num_pages, found.num_bytes
    result.files = {name: file.sha256 for name, file in found.hashes.items()}
    result.compared, result.notes = found.num_compared, [spell_options(note) for note in found.notes]
    result.findings = [fill_result(FindingObject, one, one.error) for one in found.findings]
    for note in result.notes:
        console.note(note)
    if found.findings:
        if len(found.findings) > 1:
            console.note(f"{len(found.findings)} faults; this is the first, --json lists all")
        raise found.findings[0].error
    text = (
        f"{directory} is whole: {found.num_tensors:,} tensors, {found.num_pages:,} pages, "
        f"{format_bytes(found.num_bytes)} in {len(found.hashes)} files, "
        f"{found.num_compared} of them compared with their recorded hashes"
    )
    console.show([text])
    if golden is not None:
        _compare_golden(options, *golden, result, console)


def _check_options(options: VerifyOptions) -> None:
    """UsageError for options that say how the model is loaded, if it is not."""
    if options.golden:
        return
    of_golden = [*fields(ComputeOptions), *(one for one in fields(options) if one.name in _OF_GOLDEN)]
    given = [one.name for one in of_golden if getattr(options, one.name) != one.default]
    if given:
        raise UsageError(
            f"{parameter(given[0])} without --golden",
            "only for golden answers is the model loaded and asked",
            f"add --golden, or remove {parameter(given[0])}",
        )


def _find_golden(directory: Path) -> tuple[ModelFiles, GoldenPrompts]:
    from ernie_local.config import read_config
    from ernie_local.model_files import ModelFiles
    from ernie_local.verify.golden_file import find_golden

    files = ModelFiles(directory, read_config(directory))
    return files, find_golden(files)


def _compare_golden(
    options: VerifyOptions, files: ModelFiles, golden: GoldenPrompts, result: VerifyResult, console: Console
) -> None:
    """ModelUnusable for plain weights that part from an answer where rounding does not explain it."""
    from ernie_local import session
    from ernie_local.errors import ModelUnusable
    from ernie_local.verify.golden import compare_golden, suspicion

    with console.telling_warnings(), console.working("loading the model"):
        model = session.open_model(files, load_options(options))
        model.wait_until_resident()  # which checks all pages
    is_quantized = files.config.quantization is not None
    outcomes: list[GoldenOutcome] = []
    with console.working("comparing answers"):
        for outcome in compare_golden(model, golden, options.variant):
            outcomes.append(outcome)
            result.golden.append(fill_result(GoldenObject, outcome))
            console.show([_golden_line(outcome)])
    result.suspicion = suspicion(outcomes, is_quantized=is_quantized)
    if result.suspicion is None:
        return
    console.note(f"suspect {result.suspicion}")
    parted = [one for one in outcomes if one.first_other is not None and not one.is_near_tie]
    if parted and not is_quantized:
        raise ModelUnusable(
            f"{parted[0].name}: {parted[0].agreed} of {parted[0].num_ids} golden ids, and others were chosen",
            f"these are {golden.source}; suspect {result.suspicion}",
            "compare config.json, tokenizer files and templates with those of the model's repository",
        )


def _golden_line(outcome: GoldenOutcome) -> str:
    if outcome.skipped is not None:
        return f"golden {outcome.name}: not tried, as {outcome.skipped}"
    if outcome.first_other is None:
        return f"golden {outcome.name}: match, all {outcome.num_ids} ids"
    return (
        f"golden {outcome.name}: {outcome.agreed} of {outcome.num_ids} ids agree; the first other one is id "
        f"{outcome.first_other + 1}, {outcome.chosen!r} for {outcome.expected!r}, by {outcome.gap:.2f}"
    )
