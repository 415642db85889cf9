"""`ernie-local bench [MODEL]`: measures the machine and a model on it, shows the figures, and stores them.

How to measure belongs to ernie_local.machine.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.chat.options import ChatOptions
from ernie_cli.console import Console
from ernie_cli.images import open_given_images
from ernie_cli.progress import downloaded
from ernie_cli.settings import profile_path
from ernie_local import defaults
from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels.native import native_absence
from ernie_local.machine.hardware import find_hardware, own_profile
from ernie_local.model_files import ModelFiles, find_model_files
from ernie_local.planner.profile import (
    EFFICIENCY_CORE_MEASUREMENTS,
    MachineProfile,
    Measurement,
    ModelSpeed,
    write_profile,
)
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:  # with torch: imported when it is known that something will be measured
    from ernie_cli.bench.command import BenchOptions
    from ernie_cli.bench.result import BenchResult
    from ernie_local.loading import LoadedModel
    from ernie_local.machine.model_speed import ModelRun
    from ernie_local.machine.survey import Survey
    from ernie_local.media.open_image import OpenedImage

# Reads of smaller pages are mostly latency, and no model that needs paging has such pages.
_SMALL_PAGE = 1 << 20


def measure(options: BenchOptions, result: BenchResult) -> None:
    """Measure, tell, store; what can be refused is refused before anything is measured."""

    if options.vram is not None:
        from ernie_local.loading.options import find_device

        find_device("cuda")
    image = None if options.image is None else _open_image(options.image, options.password)
    console = Console(shows_result=not options.as_json)
    files = None if options.model is None else find_model_files(downloaded(options.model, console))
    if files is not None:
        model_limit = files.config.text.max_position_embeddings
        defaults.context_tokens(_chat_options(options).context_tokens(), model_limit)
        if image is not None:
            files.image_processor.check()
    # Without them, measuring would take an hour, and mean nothing.
    if (absence := native_absence()) is not None:
        raise DoesNotFit("bench measures the compiled kernels, which are missing", absence.why, absence.hint)
    with console.working("starting"):
        _measure_all(options, files, image, console, result)


def _measure_all(
    options: BenchOptions,
    files: ModelFiles | None,
    image: OpenedImage | None,
    console: Console,
    result: BenchResult,
) -> None:
    from ernie_local.loading.options import use_threads

    with console.telling_warnings():
        use_threads(None, efficiency_cores=True)  # the survey finds out whether they help
    survey = _survey(files, console)
    profile = MachineProfile(
        hardware=find_hardware(),
        date=datetime.now(UTC).date().isoformat(),
        rates=survey.rates,
        plain_rates=survey.plain_rates,
        measurements=survey.measurements,
    )
    result.set_machine(profile)
    console.show(machine_lines(survey))
    if files is not None:
        profile = _measure_model(options, files, profile, image, console, result)
    if not options.no_save:
        path = profile_path()
        # What an earlier run on the same hardware measured of rules for misses is kept.
        if not profile.miss_rules and (stored := own_profile(path)) is not None:
            profile = dataclasses.replace(profile, miss_rules=stored.miss_rules)
        write_profile(path, profile)
        console.note(f"profile stored as {path}")
        result.saved = str(path)


def _chat_options(options: BenchOptions) -> ChatOptions:
    """For a model loaded as a chat would load it: with a limit of a GPU's memory, on the GPU."""
    assert options.model is not None
    return ChatOptions(
        model=options.model,
        device="cpu" if options.vram is None else "cuda",
        context_size=options.context_size,
        ram=options.ram[0] if options.ram else None,
        vram=options.vram,
    )


def machine_lines(survey: Survey) -> Iterator[str]:
    """A line for each measurement."""
    from ernie_local.machine.compute import measured_formats

    measured = survey.measurements
    yield _line("disk, pages of experts", measured["disk_bytes_per_second"], 1e9, "GB/s")
    yield _line("disk, 4 KiB at a time", measured["disk_4096_bytes_per_second"], 1e9, "GB/s")
    for with_all, without in EFFICIENCY_CORE_MEASUREMENTS:
        if without in measured:
            unit = "GB/s" if "bytes" in without else "G operations/s"
            kind = "one token" if "token" in without else "prompt"
            yield _line(f"{kind}, performance cores", measured[without], 1e9, unit)
            yield _line(f"{kind}, all cores", measured[with_all], 1e9, unit)
    for name in (*measured_formats(), "float32", "bfloat16"):
        yield _line(f"one token, {name} weights", measured[f"{name}_bytes_per_second"], 1e9, "GB/s")
    yield _line("prompt, w4 experts", measured["prompt_operations_per_second"], 1e9, "G operations/s")
    yield _line("prompt, float32", measured["plain_prompt_operations_per_second"], 1e9, "G operations/s")
    if survey.rates.gpu is not None:
        yield _line("GPU, its memory", measured["gpu_memory_bytes_per_second"], 1e9, "GB/s")
        yield _line("GPU, link to it", measured["gpu_link_bytes_per_second"], 1e9, "GB/s")
        yield _line("GPU, float16 products", measured["gpu_operations_per_second"], 1e9, "G operations/s")
    yield _line("decode, besides layers", measured["token_seconds"], 1e-3, "ms")
    yield _line("decode, a layer besides bytes", measured["layer_seconds"], 1e-3, "ms")
    yield _line("the same, added if paged", measured["paged_layer_seconds"], 1e-3, "ms")
    yield _line("the same, per missing page", measured["page_seconds"], 1e-3, "ms")


def rule_lines(profile: MachineProfile) -> Iterator[str]:
    """How fast each rule for misses is, if they were measured."""
    for name, tokens_per_second in profile.miss_rules.items():
        best = "  fastest" if name == profile.best_miss_rule else ""
        yield f"{f'decode, misses {name}':<32}  {tokens_per_second:10.2f} tokens/s{best}"


def model_speed_lines(model: LoadedModel, measured: ModelRun) -> Iterator[str]:
    """What the model does here, and what was predicted."""
    held = "all in memory"
    if measured.expert_memory_bytes is not None:
        held = f"experts paged, {format_bytes(measured.expert_memory_bytes)} of memory for them"
    yield f"{model.directory.name}: {format_bytes(model.weight_bytes)} of weights, {held}"
    yield _line(f"first token, prompt of {measured.prompt_tokens}", measured.first_token_seconds, 1.0, "s")
    yield _line("prefill", measured.prefill, 1.0, "tokens/s")
    yield _line("decode", measured.decode, 1.0, "tokens/s")
    if measured.disk is not None:
        yield _line("disk, between decode rounds", measured.disk, 1e9, "GB/s")
    if measured.memory_share is not None:
        yield _line("weights, share of their rate", measured.memory_share, 0.01, "%")
    off = measured.predicted_decode / measured.decode.median - 1
    found = "" if measured.hit_rate is None else f", with {measured.hit_rate:.0%} of experts found in memory"
    yield f"{'decode, predicted':<32}  {measured.predicted_decode:10.2f} tokens/s  {off:+.0%}{found}"
    if measured.image is not None:
        image = measured.image
        yield _line(f"image of {image.tokens} tokens, encoder", image.encode_seconds, 1.0, "s")
        yield _line("its prefill", image.prefill, 1.0, "tokens/s")


def _line(name: str, measured: Measurement, unit: float, unit_name: str) -> str:
    median, low, high = (value / unit for value in (measured.median, measured.low, measured.high))
    return f"{name:<32}  {median:10.2f} {unit_name}  ({low:.2f} to {high:.2f})"


def _open_image(name: str, password: str | None) -> OpenedImage:
    opened = open_given_images([name], password=password)
    if len(opened) > 1:
        raise UsageError(
            f"--image {name} has {len(opened)} images or pages, 1 can be measured",
            "each page is an image of its own",
            f"name one of them: --image {opened[0].name}",
        )
    return opened[0]


def _survey(files: ModelFiles | None, console: Console) -> Survey:
    from ernie_local.checkpoint.reader import open_checkpoint
    from ernie_local.experts.build import stored_page_bytes
    from ernie_local.machine.disk import PAGE_BYTES, find_storage, holds_pages
    from ernie_local.machine.survey import survey_machine

    page_bytes, shard = PAGE_BYTES, None
    if files is not None:
        with open_checkpoint(files.directory, files.config) as checkpoint:
            page_bytes = max((_SMALL_PAGE, *stored_page_bytes(checkpoint, files.config).values()))
        shards = files.directory.glob("*.safetensors")
        shard = max(shards, key=lambda path: path.stat().st_size, default=None)
    if shard is None or not holds_pages(shard, page_bytes):
        shard, page_bytes = None, PAGE_BYTES
    folder = Path(tempfile.gettempdir()) if shard is None else shard.parent
    storage = find_storage(folder)
    if storage.kind == "memory":
        console.warn(
            f"{folder} is in memory ({storage.file_system}), not on a disk; set TMPDIR to a folder on one"
        )
    return survey_machine(lambda what: console.step(f"measuring: {what}"), shard, page_bytes)


def _measure_model(
    options: BenchOptions,
    files: ModelFiles,
    profile: MachineProfile,
    image: OpenedImage | None,
    console: Console,
    result: BenchResult,
) -> MachineProfile:
    """Measure, tell, and return the profile with what was measured of the model."""
    import torch

    from ernie_cli.chat.conversation import load_for_chat
    from ernie_local.machine.model_speed import measure_miss_rules, measure_model

    console.step(f"loading {options.model}")
    chat_options = dataclasses.replace(_chat_options(options), threads=torch.get_num_threads())
    model = load_for_chat(chat_options, files, console)
    console.step("measuring: prompts and answers")
    patches = None if image is None else model.patches([image.image])[0]
    measured = measure_model(model, profile.rates_for(is_packed=files.config.has_packed_experts), patches)
    speed = ModelSpeed(
        name=model.directory.name,
        weight_bytes=model.weight_bytes,
        prefill_tokens_per_second=measured.prefill.median,
        decode_tokens_per_second=measured.decode.median,
        predicted_decode_tokens_per_second=measured.predicted_decode,
        expert_memory_bytes=measured.expert_memory_bytes,
        hit_rate=measured.hit_rate,
    )
    profile = dataclasses.replace(profile, model=speed)
    if options.vram is not None:
        console.step("measuring: rules for experts that the GPU lacks")
        profile = dataclasses.replace(profile, miss_rules=measure_miss_rules(model))
    result.set_model(model, measured)
    result.miss_rules = dict(profile.miss_rules)
    console.show(model_speed_lines(model, measured))
    console.show(rule_lines(profile))
    return profile
