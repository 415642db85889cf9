"""From the options of a chat to a chat that can be asked: the model's small files first, its weights last.

Owns the order of the checks that come before the weights. Knows nothing of how a question is answered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.chat_options import ChatOptions
from ernie_cli.chat_sampling import read_generation_config, sampling_options
from ernie_cli.console import Console, profile_path
from ernie_cli.images import ImageMeasure, measure
from ernie_local.errors import DoesNotFit

if TYPE_CHECKING:
    from ernie_local.config import ModelConfig
    from ernie_local.loading import LoadedModel
    from ernie_local.media.open_image import OpenedImage
    from ernie_local.media.processor import ImageProcessorConfig
    from ernie_local.sampling import SamplingOptions
    from ernie_local.session import Chat


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory of which all but the weights has been read."""

    directory: Path
    config: ModelConfig
    processor: ImageProcessorConfig
    generation_config: Mapping[str, object]
    checkpoint_bytes: int


def find_model(name: str) -> ModelFiles:
    """The model that `name` stands for; raises ModelUnusable where its small files are missing or wrong."""
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.config import read_config
    from ernie_local.media.processor import read_processor_config

    directory = resolve_model(name)
    config = read_config(directory)
    return ModelFiles(
        directory=directory,
        config=config,
        processor=read_processor_config(directory, config.vision),
        generation_config=read_generation_config(directory),
        checkpoint_bytes=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
    )


def context_size(options: ChatOptions, files: ModelFiles) -> int:
    """Tokens that the chat may have: --ctx-size, else what the model was made for, up to a bound.

    Raises DoesNotFit for more than the model was made for.
    """
    most = files.config.text.max_position_embeddings
    asked = options.context_tokens()
    if asked is not None and asked > most:
        raise DoesNotFit(
            f"--ctx-size {asked} is more than the {most} tokens that this model was made for",
            "it has never seen positions behind that",
            f"--ctx-size {most} or less",
        )
    return asked or files.config.text.default_context_size


def check_prompt(
    options: ChatOptions, files: ModelFiles, prompt: str, images: Sequence[OpenedImage]
) -> list[ImageMeasure]:
    """What the model will see of the images, and a try of the tokenizer on the first question.

    Raises DoesNotFit where the question alone fills the context, ModelUnusable without a tokenizer.
    """
    from ernie_local.text.template import ChatTemplate, Message, detect_variant, encode_segments
    from ernie_local.text.tokenizer import ErnieTokenizer

    reports = measure(images, files.processor)
    image_tokens = tuple(report.tokens for report in reports)
    template = ChatTemplate(detect_variant(files.directory))
    thinking = options.thinking()
    segments = template.segments(
        [Message("user", prompt, image_tokens)],
        system=options.system,
        thinking=template.thinks_by_default if thinking is None else thinking,
    )
    tokenizer = ErnieTokenizer.from_directory(files.directory)
    num_tokens = len(encode_segments(tokenizer, segments, files.config.media).token_ids)
    limit = context_size(options, files)
    if num_tokens >= limit:
        raise DoesNotFit(
            f"the question takes {num_tokens} tokens, the context has {limit}",
            f"{sum(image_tokens)} of them are for {len(reports)} images, and the answer needs 1 or more",
            _advice(num_tokens, files.config.text.max_position_embeddings, len(reports)),
        )
    return reports


def _advice(num_tokens: int, most: int, num_images: int) -> str:
    shorter = "a shorter question" + (", or fewer or smaller images" if num_images else "")
    roomy = -(-(num_tokens + 512) // 1024)
    return f"--ctx-size {roomy}k, or {shorter}" if roomy * 1024 <= most else shorter


def check_saved_chat(path: Path, files: ModelFiles) -> None:
    """Read a saved chat and its images once before the weights; InputUnreadable as from `load_chat`."""
    from ernie_local.session.image import open_same_image
    from ernie_local.session.transcript import read_chat

    read_chat(path, lambda name, size: open_same_image(name, size, files.processor))


def load_model(options: ChatOptions, files: ModelFiles, console: Console) -> LoadedModel:
    """Load the weights as the options say; what the runtime warns of is told on the console."""
    import ernie_local

    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    with console.telling_warnings():
        return ernie_local.load(
            files.directory,
            device=options.device,
            dtype=options.dtype_name(files.checkpoint_bytes, files.config.quantization is not None),
            ram=options.ram,
            reserve=options.reserve,
            vram=options.vram,
            paging=options.paging(_best_miss_rule(options)),
            context_size=context_size(options, files),
            kv_dtype=options.kv_dtype_name(),
            gpu_kernels=options.gpu_kernels,
            cuda_graphs=options.cuda_graphs,
        )


def _best_miss_rule(options: ChatOptions) -> str | None:
    """As the profile of this machine has it; None without --vram, which alone makes a rule matter."""
    if options.vram is None or options.misses != "auto":
        return None
    from ernie_local.machine.hardware import own_profile

    profile = own_profile(profile_path())
    return None if profile is None else profile.best_miss_rule


def open_chat(options: ChatOptions, files: ModelFiles, console: Console) -> Chat:
    """Load the model and begin the chat, or go on with the one of --load."""
    # Built before the weights are read: it refuses values that mean nothing.
    sampling = sampling_options(options, files.generation_config)
    if options.load is not None:
        check_saved_chat(options.load, files)
    model = load_model(options, files, console)
    _tell_of_slow_kernels(console)
    for note in [*model.paging_notes(), *_idle_options(options, model)]:
        console.note(note)
    if options.trace is not None:
        model.record_trace()
    if options.load is not None:
        return load_chat(options.load, model, sampling)
    return new_chat(model, sampling, options.system)


def _idle_options(options: ChatOptions, model: LoadedModel) -> Iterator[str]:
    """Options that change nothing, as all experts are in memory."""
    given = {
        "--small-below": options.small_below is not None,
        "--look-ahead": options.look_ahead,
        "--misses": options.misses != "auto",
    }
    idle = [name for name, is_given in given.items() if is_given]
    if idle and model.paging is None:
        yield f"{', '.join(idle)}: without effect, every expert is in memory"


@contextmanager
def trace_written(options: ChatOptions, chat: Chat, console: Console) -> Iterator[None]:
    """When the block ends, however it does, the trace is written where --trace says so."""
    try:
        yield
    finally:
        if options.trace is not None:
            from ernie_local.replay.trace_file import write_trace

            recorder = chat.model.recorder
            assert recorder is not None
            trace = recorder.trace()
            write_trace(options.trace, trace)
            tokens = f"{trace.prompt_tokens} prompt tokens and {trace.decoded_tokens} decoded ones"
            console.note(f"trace of {tokens} saved as {options.trace}")


def _tell_of_slow_kernels(console: Console) -> None:
    from ernie_local.kernels.native import native_notice

    notice = native_notice()
    if notice is not None:
        console.warn(notice)


def new_chat(model: LoadedModel, sampling: SamplingOptions, system: str | None) -> Chat:
    """An empty chat."""
    from ernie_local.session import Chat

    return Chat(model, system=system, sampling=sampling)


def load_chat(path: Path, model: LoadedModel, sampling: SamplingOptions) -> Chat:
    """The chat saved at `path`."""
    from ernie_local.session import Chat

    return Chat.load(path, model, sampling=sampling)
