"""Opens the chat that the options describe, and shows the notes and warnings of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli.chat.options import ChatOptions
from ernie_cli.console import Console
from ernie_cli.failures import spell_options
from ernie_cli.settings import stored_profile

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel
    from ernie_local.model_files import ModelFiles
    from ernie_local.sampling import SamplingOptions
    from ernie_local.session import Chat


def load_for_chat(options: ChatOptions, files: ModelFiles, console: Console) -> LoadedModel:
    """Load the weights as the options say; what the runtime warns of is told on the console."""
    from ernie_local.session import open_model, opening_notes

    load_options = options.load_options()
    # The profile says which rule for misses is fastest, and a rule matters only with two memories.
    profile = None if options.vram is None else stored_profile()
    with console.telling_warnings():
        model = open_model(files, load_options, profile)
    for note in opening_notes(model, load_options):
        console.note(spell_options(note))
    return model


def open_chat(options: ChatOptions, files: ModelFiles, console: Console) -> Chat:
    """Load the model and begin a chat, or continue the one of --load."""
    from ernie_local.kernels.native import native_notice
    from ernie_local.session import Chat, read_saved_chat

    # Built before the weights are read: they refuse values that mean nothing, and broken files.
    sampling = chat_sampling(options, files)
    saved = None if options.load is None else read_saved_chat(options.load, files)
    model = load_for_chat(options, files, console)
    notice = native_notice()
    if notice is not None:
        console.warn(notice)
    if options.trace is not None:
        model.record_trace()
    if saved is not None:
        return Chat.resume(saved, model, sampling)
    return Chat(model, options.system, sampling)


def chat_sampling(options: ChatOptions, files: ModelFiles) -> SamplingOptions:
    """How tokens are drawn: flags over the model's own generation_config.json."""
    from ernie_local.sampling import model_sampling

    return options.sampling(model_sampling(files.generation_config))


@contextmanager
def trace_written(path: Path | None, chat: Chat, console: Console) -> Iterator[None]:
    """When the block ends, however it does, the trace is written to `path`."""
    try:
        yield
    finally:
        if path is not None:
            from ernie_local.replay.trace_file import write_trace

            recorder = chat.model.recorder
            assert recorder is not None
            trace = recorder.trace()
            write_trace(path, trace)
            console.note(
                f"trace of {trace.prompt_tokens} prompt tokens and {trace.decoded_tokens} decoded ones "
                f"saved as {path}"
            )
