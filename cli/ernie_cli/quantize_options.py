"""The options of `ernie-local quantize`, some of which `calibrate` has too: their types and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A bfloat16 model: a directory, hf:org/name, or nano.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A new directory.")]
Bits = Literal["4", "2", "mixed"]
Method = Literal["gptq", "clip", "rtn", "nf4", "quanto", "quanto-hqq"]
# How experts are quantized.
ExpertBits = Annotated[
    Bits,
    typer.Option(
        help="Bits of the experts: w4 (4.25 a weight), w2 (2.25; by quanto qint4 or qint2), or mixed: 2.5 on "
        "average, given to each expert and matrix by what it is worth."
    ),
]
Dual = Annotated[
    bool,
    typer.Option(
        "--dual",
        help="Give each expert of --bits 4 a second page in w2, for a paging runtime to read instead where "
        "the expert counts little.",
    ),
]
ExpertMethod = Annotated[
    Method,
    typer.Option(
        help="gptq calibrates each expert; the others look at weights alone. nf4 is bitsandbytes', quanto "
        "optimum-quanto's, which have to be installed; what they leave is quantized as by clip."
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Weights that share a scale, by nf4 (64) and quanto (128)."),
]
Resume = Literal["auto", "required", "never"]
ResumeChoice = Annotated[
    Resume, typer.Option(help="Go on with OUT.partial if it is there; only if; or begin anew.")
]
# What is calibrated on.
NumSamples = Annotated[
    int, typer.Option(metavar="N", min=0, help="Generated documents, charts and texts to calibrate on.")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Draw other samples.")]
Family = Annotated[
    Literal["all", "images", "documents", "charts", "texts"],
    typer.Option(help="What the generated samples are: the mix, or one kind; nano reads small images only."),
]
CalibrationFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Calibrate on the images of DIR too, with .txt or .json beside them."),
]
Dense = Annotated[
    Literal["w8", "w4", "auto"],
    typer.Option(
        help="Attention, shared experts, dense layers and head, read for every token; auto: by what bits are "
        "worth in each layer."
    ),
]
TargetSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Mixed bits for weights of at most this size, such as 10GiB."),
]
Fit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Mixed bits for a GPU of this size: what decoding needs, all but vision experts and tower.",
    ),
]
Statistics = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What bits are worth, from `ernie-local calibrate`."),
]
MaxRam = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Refuse to begin where more memory would be needed.")
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="CPU threads to compute with.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Tell size, disk, memory and time; make nothing but OUT.statistics.json, for mixed bits.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object (docs/quantize-json.md).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
