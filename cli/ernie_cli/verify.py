"""The command `ernie-local verify`: checks that a checkpoint is whole. Imports nothing heavy before it
runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from ernie_cli.console import Console
from ernie_cli.json_object import fill_result
from ernie_cli.options import CommonOptions, model_argument
from ernie_local.sizes import format_bytes


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(CommonOptions):
    """What was said on the command line."""

    model: str = model_argument(default="nano")


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


def verify_checkpoint(options: VerifyOptions, result: VerifyResult) -> None:
    """Read a whole checkpoint once: hashes, tensors, pages, numbers, tokenizer and processor.

    Exit code 4 and the first fault where something is wrong. Needs little memory, whatever the model's size.
    """
    from ernie_cli.progress import UnitProgress, downloaded
    from ernie_local.checkpoint.hub import resolve_model

    console = Console(quiet=options.as_json)
    directory = resolve_model(downloaded(options.model, console))
    result.directory = str(directory)
    with UnitProgress(console) as progress:
        from ernie_local.verify import verify as verify_directory  # with torch, which takes a while

        found = verify_directory(directory, progress.show)
    result.tensors, result.pages, result.bytes = found.num_tensors, found.num_pages, found.num_bytes
    result.files = {name: file.sha256 for name, file in found.hashes.items()}
    result.compared, result.notes = found.num_compared, list(found.notes)
    result.findings = [fill_result(FindingObject, one, one.error) for one in found.findings]
    for note in found.notes:
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
