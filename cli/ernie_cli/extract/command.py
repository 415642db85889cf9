"""The command `ernie-local extract`: the order of its steps.

Everything that can be wrong but the documents themselves is checked before the model is loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_cli.extract.options import ExtractOptions
from ernie_cli.status import counted, duration
from ernie_local.errors import ErnieLocalError

if TYPE_CHECKING:
    from ernie_cli.extract.result import ExtractResult, ForecastObject
    from ernie_local.extraction.documents import FoundFiles
    from ernie_local.extraction.reader import ReadingOptions
    from ernie_local.model_files import ModelFiles

_SHOWN_NAMES = 5


def extract_fields(options: ExtractOptions, result: ExtractResult) -> None:
    """Read fields from documents into JSON lines: each page of PDFs, each image, each video, in folders too.

    Each line has the fields as --schema or --fields says, how sure the model was of each, which checks
    failed, and the error of a document that could not be read. With --out, a run that was stopped goes on
    where it ended. Exit code 1 if documents could not be read.
    """
    from ernie_cli.progress import downloaded
    from ernie_local import model_files

    console = Console(quiet=options.as_json)
    result.model, result.out = options.model, None if options.out is None else str(options.out)
    with console.working("starting"):
        from ernie_cli.extract import request
        from ernie_cli.extract.exports import check_exports, exported
        from ernie_cli.extract.job import ReadingJob
        from ernie_cli.extract.output import open_output
        from ernie_cli.form_options import note_form
        from ernie_local.extraction.documents import check_found

        request.check_extract_options(options)
        reading = request.reading_options(options)
        schema = reading.form.schema or {}
        check_exports(options, schema)
    with console.working("looking for documents"):
        found = request.find_documents(options, schema)
    if not options.watch:
        check_found(found, options.glob)
    if found.others:
        more = " ..." if len(found.others) > _SHOWN_NAMES else ""
        console.note(f"left out {len(found.others)}: {', '.join(found.others[:_SHOWN_NAMES])}{more}")
    if idle := request.idle_frames(options, found):
        console.warn(idle)
    files = model_files.find_model_files(
        downloaded(options.model, console),
        max_pixels=options.max_pixels_count(),
        image_tokens=options.image_tokens_count(),
    )
    identity = request.run_identity(options, reading, files, found)
    if options.dry_run:
        done = request.find_done_before(options, identity)
        result.done_before = len(done)
        result.forecast = _forecast(options, reading, files, found, done, console)
        return
    with (
        open_output(options, identity, console, result) as lines,
        exported(options, schema, found.folder, lines, console, result) as output,
    ):
        if options.ask == "together":
            note_form(console, options.model, "--ask each")
        result.done_before, result.broken = len(output.done), output.num_broken
        job = ReadingJob(options, reading, files, found, output, console, result)
        job.run()
    console.note(_summary(result))
    if result.broken and not options.skip_errors:
        raise ErnieLocalError(
            f"{result.broken} of {result.done_before + result.documents} documents have no fields",
            f"the first of this run: {job.first_error}" if job.first_error else "their records say why",
            "look at `error` of their lines; --skip-errors makes this a success",
        )


def _summary(result: ExtractResult) -> str:
    """One line about the run."""
    rate = "" if result.documents_per_hour is None else f", {result.documents_per_hour:.0f} an hour"
    parts = [f"{counted(result.documents, 'document')} in {duration(result.seconds)}{rate}"]
    if result.done_before:
        parts.append(f"{result.done_before} were there before")
    for count, what in (
        (result.broken, "without fields"),
        (result.to_review, "to review"),
        (result.failing, "with a failed check"),
        (result.noted, "with notes on their boxes"),
    ):
        if count:
            parts.append(f"{count} {what}")
    return "; ".join(parts)


def _forecast(
    options: ExtractOptions,
    reading: ReadingOptions,
    files: ModelFiles,
    found: FoundFiles,
    done: Collection[tuple[str, int | None]],
    console: Console,
) -> ForecastObject:
    from ernie_cli.extract.forecast import forecast, forecast_lines
    from ernie_local.extraction.documents import documents_of

    documents = documents_of(found.files, done, per_file=options.per_file, password=options.password)
    with console.working("opening documents"):
        seen = forecast(options, reading, files, islice(documents, options.limit))
    console.show(forecast_lines(seen, len(done)))
    return seen
