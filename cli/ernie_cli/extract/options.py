"""Declares the options of `ernie-local extract`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_cli.form_options import SchemaOptions
from ernie_cli.options import (
    CommonOptions,
    ImageOptions,
    MemoryOptions,
    ThinkingOptions,
    complete_model,
    file_option,
    fps_option,
    frames_option,
    load_options,
    option,
    parallel_option,
    parse_parallel,
    password_option,
    path_argument,
    share_option,
)

if TYPE_CHECKING:
    from ernie_local.loading import LoadOptions


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(SchemaOptions, ThinkingOptions, MemoryOptions, ImageOptions, CommonOptions):
    """What was said on the command line; None means that the model or the runtime decides."""

    paths: tuple[Path, ...] = path_argument(
        metavar="PATH...", help="Documents, and folders of them: images, PDFs, videos, also in folders below."
    )
    model: str = option(
        "-m",
        "--model",
        default="nano",
        metavar="MODEL",
        help="A directory, hf:org/name[@revision], or nano.",
        autocompletion=complete_model,
    )
    out: Path | None = file_option(
        "-o",
        "--out",
        help="Write the records to FILE, a line of JSON each, and go on where an earlier run ended. "
        "Default: stdout.",
    )
    glob: str | None = option(
        metavar="PATTERN", help="Of folders, read the files that match, such as '*.pdf' or '2024/*'."
    )
    per_file: bool = option(
        "--per-file", default=False, help="Ask about all pages of a file together. Default: page by page."
    )
    limit: int | None = option(metavar="N", min=1, max=2**31 - 1, help="End after N documents.")
    ask: Literal["together", "each"] = option(
        default="together",
        help="together: all fields in one answer; each: a question for each field, by its description or "
        "name, for small models such as nano, which write no JSON.",
    )
    prompt: str | None = option(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="What is asked about each document; with --ask each, what stands before each question.",
    )
    check: tuple[str, ...] = option(
        default=(),
        metavar="EXPRESSION",
        help="What must hold between fields, such as 'total == sum(lines.price)'; the record names checks "
        "that fail. Repeatable.",
    )
    retry: bool = option(
        "--retry", default=False, help="Where a check fails, tell the model, and ask once more."
    )
    min_confidence: float | None = share_option(help="List fields below this confidence under `review`.")
    boxes: bool = option(
        "--boxes",
        default=False,
        help="Ask where each value stands, in pixels of the original or points of a PDF page. The values of "
        "a video are read without.",
    )
    draw: Path | None = file_option(
        metavar="DIR",
        help="Draw the boxes on copies of the images, in DIR; of a video, the frames at the times that its "
        "fields name. Turns --boxes on.",
    )
    csv: Path | None = file_option(
        help="Write all records of --out, or of this run, as a table too; each list in the fields becomes a "
        "table beside it: FILE.lines.csv."
    )
    xlsx: Path | None = file_option(help="The same as an Excel file, with a sheet for each list.")
    html: Path | None = file_option(
        help="The same as one HTML page for people: image beside fields, what is least sure first."
    )
    parallel: str = parallel_option(
        default="auto",
        help="Documents that are read at once, so that the model's weights are read once for all of their "
        "tokens; auto: as many as leave experts most of the memory, up to 8, and 1 on a GPU.",
    )
    resume: Literal["auto", "never"] = option(
        default="auto",
        help="auto: documents that FILE of --out has are not read again; never: start over.",
    )
    skip_errors: bool = option(
        "--skip-errors", default=False, help="Exit with 0 even if documents could not be read."
    )
    dry_run: bool = option(
        "--dry-run",
        default=False,
        help="Open the documents, and say how many tokens they take and for how long. Loads no model.",
    )
    watch: bool = option(
        "--watch", default=False, help="Wait for more files in the folders, until Ctrl-C or --limit."
    )
    fps: float | None = fps_option(help="Frames of each second of a video, as for chat.")
    frames: int | None = frames_option(help="So many frames of each video, as for chat.")
    password: str | None = password_option()

    @property
    def wants_boxes(self) -> bool:
        """--boxes, or --draw, which needs them."""
        return self.boxes or self.draw is not None

    def load_options(self) -> LoadOptions:
        """How the model is loaded: with memory for so many documents at once."""
        return load_options(self, context_size=self.context_tokens(), parallel=parse_parallel(self.parallel))
