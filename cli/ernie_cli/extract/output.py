"""Where the records of `extract` go: a file that is continued, stdout, or the object of --json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from ernie_cli.console import Console
from ernie_cli.extract.options import ExtractOptions
from ernie_cli.extract.result import ExtractResult
from ernie_local.errors import ErnieLocalError
from ernie_local.escapes import printable_json
from ernie_local.extraction.record import Record
from ernie_local.extraction.record_file import open_record_file


@dataclass(frozen=True, slots=True)
class RecordOutput:
    """write: takes a record. done: keys of those that were there before. num_broken: of them, errors."""

    write: Callable[[Record], None]
    done: set[tuple[str, int | None]] = field(default_factory=set)
    num_broken: int = 0


@contextmanager
def open_output(
    options: ExtractOptions, identity: Mapping[str, str], console: Console, result: ExtractResult
) -> Iterator[RecordOutput]:
    """The file of --out; without it stdout, or `result` with --json. Errors as of `open_record_file`."""
    if options.out is not None:
        with open_record_file(options.out, identity, resume=options.resume == "auto") as file:
            yield RecordOutput(file.append, file.done, file.num_broken)
    elif options.as_json:
        yield RecordOutput(result.keep)
    else:
        yield RecordOutput(partial(_print, console))


def _print(console: Console, record: Record) -> None:
    try:
        console.answer(f"{printable_json(record.to_json())}\n")
    except BrokenPipeError as error:
        raise ErnieLocalError(
            f"stdout: it was closed before the record of {record.file}",
            "what read the records has ended",
            "with --out FILE, a run that was stopped goes on where it ended",
        ) from error
