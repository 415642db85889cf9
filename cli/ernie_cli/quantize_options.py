"""Declares the options of `ernie-local quantize` and refuses those that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_cli.calibration_samples import SampleOptions
from ernie_cli.options import (
    CommonOptions,
    file_option,
    lora_option,
    option,
    path_argument,
    size_option,
    source_argument,
    threads_option,
)
from ernie_local.errors import UsageError
from ernie_local.packing.formats import formats_by_bits, formats_for, largest_first
from ernie_local.sizes import parse_bytes

if TYPE_CHECKING:
    ExpertBits = str
    DenseFormat = str
else:  # typer shows what the table of formats offers
    ExpertBits = Literal[(*formats_by_bits(), "mixed")]
    DenseFormat = Literal[(*(one.name for one in largest_first(formats_for("dense"))), "auto")]


DEFAULT_BITS = "4"


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(SampleOptions, CommonOptions):
    """What was said on the command line."""

    source: str = source_argument()
    out: Path = path_argument(metavar="OUT", help="A new directory.")
    bits: ExpertBits | None = option(
        help="Bits of the experts, or of all matrices where a model has none. 8: w8 (8.13 bits per weight); "
        "4: w4 (4.25); 3: w3 (3.19); 2: w2 (2.25); with quanto qint4 or qint2; w2t: 2.13, and "
        "less lost than in w2, by a slower search; mixed: 2.5 on average, more "
        f"for the experts and matrices that need them. Default: {DEFAULT_BITS}, or what --fit chooses.",
    )
    dual: bool = option(
        "--dual",
        default=False,
        help="With --bits 3 or more: write a second page in w2 for each expert, which `chat --small-below` "
        "reads for experts of little weight.",
    )
    dense: DenseFormat | None = option(
        help="Format of attention, shared experts, dense layers and head, which every token reads. auto: "
        "chosen for each layer by measurement. Default: w8, or what --fit needs.",
    )
    target_size: str | None = size_option(
        help="Mixed bits so that the weights take at most SIZE, such as 10GiB."
    )
    fit: str | None = size_option(
        help="Choose bits for a GPU that is sold with SIZE, such as 8GiB, and a chat of 8192 tokens: mixed "
        "bits that fill it where every text expert fits there, else the most bits of which a quarter of the "
        "text experts do."
    )
    lora: tuple[str, ...] = lora_option(
        help="Add a LoRA adapter to the weights before they are quantized, times SCALE; may be repeated."
    )
    statistics: Path | None = file_option(help="Measurements of `ernie-local calibrate`, for mixed bits.")
    keep_source: bool = option(
        "--keep-source",
        default=False,
        help="Keep the weights of a source hf:ORG/NAME in the hub's cache. Otherwise each file of them is "
        "deleted after its last use, and at most 4 are on the disk.",
    )
    method: Literal["gptq", "clip", "rtn", "nf4", "quanto", "quanto-hqq"] = option(
        default="gptq",
        help="gptq calibrates each expert, and attention, shared experts and dense layers in w4; the others "
        "look at weights alone. nf4 needs bitsandbytes, quanto and quanto-hqq need optimum-quanto; matrices "
        "that these do not cover are quantized by clip.",
    )
    by_answers: bool = option(
        "--by-answers",
        default=False,
        help="Weight calibration tokens and outputs of experts by what the answers would show of an error "
        "there. Takes a pass forward and back through the exact model; not with hf: sources that are fetched "
        "meanwhile.",
    )
    group_size: int | None = option(
        metavar="N",
        min=1,
        max=65536,
        help="Weights that share a scale, for nf4 (default 64) and quanto (128).",
    )
    resume: Literal["auto", "required", "never"] = option(
        default="auto",
        help="auto: continue with OUT.partial if it exists; required: fail if it does not; never: start "
        "over.",
    )
    max_ram: str | None = size_option(help="Refuse to start if more memory would be needed.")
    threads: int | None = threads_option()
    dry_run: bool = option(
        "--dry-run",
        default=False,
        help="Show size, disk, memory and time. Writes nothing, except for mixed bits OUT.statistics.json.",
    )

    @property
    def is_mixed(self) -> bool:
        """Whether formats come from measurements; with --fit they may."""
        return self.bits == "mixed" or self.target_size is not None or self.fit is not None

    @property
    def statistics_path(self) -> Path:
        """Where the measurements behind mixed bits are, or will be."""
        return self.statistics or self.out.with_name(f"{self.out.name}.statistics.json")


def without_experts(options: QuantizeOptions) -> QuantizeOptions:
    """The options for a model that has no experts: all of its matrices in one format, `--dense` or `--bits`.

    Nothing is calibrated, as only experts are. UsageError for options that are about experts.
    """
    offered = [one.name for one in largest_first(formats_for("dense"))]
    wanted = options.dense if options.bits is None else f"w{options.bits.removeprefix('w')}"
    about_experts = (
        ("--dual", options.dual),
        ("--by-answers", options.by_answers),
        ("--target-size", options.target_size is not None),
        ("--statistics", options.statistics is not None),
        (f"--calib {options.calib}", options.calib is not None),
        (f"--method {options.method}", options.method not in ("gptq", "clip", "rtn")),
        (f"--bits {options.bits}", wanted is not None and wanted not in offered),
        (f"--bits {options.bits} and --dense {options.dense}", options.dense not in (None, wanted)),
    )
    for given, is_given in about_experts:
        if is_given:
            raise UsageError(
                f"{given} with a model without experts",
                f"all of its matrices are read for every token, and have one format: {' or '.join(offered)}",
                "--bits 4, or --bits 8",
            )
    method = "clip" if options.method == "gptq" else options.method
    return replace(options, bits=None, dense=wanted or offered[0], method=method)


def check_quantize_options(options: QuantizeOptions) -> None:
    """UsageError for options that contradict each other; costs nothing."""
    if options.target_size is not None and options.fit is not None:
        raise UsageError(
            f"--target-size {options.target_size} and --fit {options.fit}",
            "one limits the size of the checkpoint, the other the memory of a GPU",
            "use one of them",
        )
    for given, size in (("--fit", options.fit), ("--target-size", options.target_size)):
        if size is not None and options.bits not in ("mixed", None):
            raise UsageError(
                f"{given} {size} with --bits {options.bits}",
                f"{given} chooses the bits of the experts",
                "use one of them",
            )
    if options.is_mixed and options.method != "gptq":
        raise UsageError(
            f"mixed bits with --method {options.method}",
            "what bits are worth is measured on calibration samples, which only gptq uses",
            "use --method gptq, or --bits 4 or 2",
        )
    if options.dual and options.is_mixed:
        raise UsageError(
            "--dual with mixed bits",
            "mixed bits give each expert one page, and the size limit counts no second pages",
            "use --bits 4 with --dual, or remove --dual",
        )
    for given, is_given in (
        ("--dense auto", options.dense == "auto"),
        ("--statistics", options.statistics is not None),
    ):
        if is_given and not options.is_mixed:
            raise UsageError(
                f"{given} with --bits {options.bits or DEFAULT_BITS}",
                "it matters for mixed bits only",
                f"add --bits mixed, --target-size or --fit, or remove {given}",
            )
    if options.keep_source and not options.source.startswith("hf:"):
        raise UsageError(
            f"--keep-source with {options.source}",
            "only what is downloaded from the hub is deleted",
            "remove --keep-source, or name the source hf:ORG/NAME",
        )
    sizes = ("target_size", options.target_size), ("fit", options.fit), ("max_ram", options.max_ram)
    for name, text in sizes:
        if text is not None:
            parse_bytes(text, name)
