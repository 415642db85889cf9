"""Opens the source of `quantize`: a directory, or a model on the hub that is fetched while it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ernie_cli.console import Console
from ernie_cli.quantize_options import QuantizeOptions
from ernie_local.errors import UsageError
from ernie_local.sizes import format_bytes, parse_bytes

if TYPE_CHECKING:
    from ernie_quant.formats_for_gpu import GpuFit
    from ernie_quant.hub_source import HubSource
    from ernie_quant.shard_store import Download


class OpenedSource(NamedTuple):
    """directory: of the source; hub: of one on the hub, what is to be fetched while it is read.

    options: with the formats that `fit` says, None where --fit was not given.
    """

    directory: Path
    hub: HubSource | None
    options: QuantizeOptions
    fit: GpuFit | None


@contextmanager
def opened_source(options: QuantizeOptions, console: Console) -> Iterator[OpenedSource]:
    """The source, while it is read. DoesNotFit for a GPU that is too small for any formats."""
    from ernie_local.checkpoint.hub import HUB_PREFIX, resolve_model
    from ernie_quant.hub_source import hub_source
    from ernie_quant.place import partial_of

    if not options.source.startswith(HUB_PREFIX):
        directory = resolve_model(options.source)
        yield OpenedSource(directory, None, *_fitted(options, directory, console))
        return
    works = () if options.resume == "never" else (options.out, partial_of(options.out))
    with ExitStack() as stack:
        with console.working("reading the headers of the source"), console.telling_warnings():
            found = hub_source(options.source, works, keeps=options.keep_source)
            hub = stack.enter_context(found)
        if hub.is_pinned:
            console.note(f"going on with {hub.identity}, with which the work was begun")
        options, fit = _fitted(options, hub.directory, console)
        if options.is_mixed and not options.statistics_path.exists():
            hub = _whole_source(hub, options, console)
        yield OpenedSource(hub.directory, hub, options, fit)


def _fitted(
    options: QuantizeOptions, directory: Path, console: Console
) -> tuple[QuantizeOptions, GpuFit | None]:
    """The options with the formats that --fit stands for."""
    from ernie_local.config import read_config
    from ernie_local.media.processor_config import read_processor_config
    from ernie_quant.formats_for_gpu import fit_gpu

    if options.fit is None:
        return options, None
    config = read_config(directory)
    processor = read_processor_config(directory, config.tower)
    fit = fit_gpu(config, processor, parse_bytes(options.fit, "fit"), options.dense)
    for line in fit.lines:
        console.note(line)
    if fit.bits is None:
        return replace(options, dense=fit.dense), fit
    if options.statistics is not None:
        console.note(
            f"{options.statistics} is not read: no bits are mixed, every expert gets --bits {fit.bits}"
        )
    return replace(options, bits=fit.bits, dense=fit.dense, fit=None, statistics=None), fit


def _whole_source(hub: HubSource, options: QuantizeOptions, console: Console) -> HubSource:
    """The source with all its weights in the hub's cache; UsageError if they would not be kept there."""
    from ernie_cli.progress import downloaded
    from ernie_local.checkpoint.hub_download import weight_files

    if hub.model is None:
        return hub
    if not options.keep_source:
        size = format_bytes(sum(file.num_bytes for file in weight_files(hub.model.files)))
        raise UsageError(
            f"mixed bits of {options.source}, whose {size} of weights are not in the cache of the hub",
            "they are read twice, to measure and to quantize, and would be downloaded twice",
            "add --keep-source; or name measurements of `ernie-local calibrate` with --statistics",
        )
    return replace(hub, directory=Path(downloaded(hub.identity, console)), model=None)


def download_lines(download: Download) -> Iterator[str]:
    """What is fetched of the source, and how much of it is on the disk at any time."""
    from ernie_cli.status import duration

    at = ""
    if download.seconds:
        rate = int(download.num_bytes / download.seconds)
        at = f", about {duration(download.seconds)} at the {format_bytes(rate)}/s of now"
    again = download.num_fetches - download.num_files
    twice = f", {again} of them twice to keep few on the disk" if again else ""
    yield f"download: {format_bytes(download.num_bytes)} in {download.num_files} files{twice}{at}"
    if download.disk_bytes:
        size = format_bytes(download.disk_bytes)
        yield f"source:   at most {download.most_files} of them on the disk at any time, {size}"
    else:
        yield "source:   all of them stay in the cache of the hub"
