"""Asks one question and shows the answer: pieces as they come, what Ctrl-C does, and the figures after."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_local.experts.options import PagingStats
    from ernie_local.session import Answer, Chat, ChatImage


@dataclass(frozen=True, slots=True)
class AskSettings:
    """How to ask and how to show the answer; in a chat they can change between questions."""

    thinking: bool | None
    think_budget: int | None
    max_tokens: int | None
    hide_thinking: bool
    stream: bool
    print_answer: bool = True


def ask(
    chat: Chat, question: str, images: Sequence[ChatImage], settings: AskSettings, console: Console
) -> Answer:
    """Ask, show the answer, and return it. Ctrl-C ends the answer early (`finish_reason` "interrupted").

    Raises what `Chat.ask` raises, NoAnswer included, with all that was said shown.
    """
    held_back: list[str] = []
    try:
        with stop_on_interrupt(chat):
            for piece in chat.ask(
                question,
                images=images,
                thinking=settings.thinking,
                thinking_budget=settings.think_budget,
                max_tokens=settings.max_tokens,
            ):
                if not settings.print_answer:
                    continue
                if piece.kind == "reasoning":
                    if not settings.hide_thinking:
                        console.thought(piece.text)
                elif settings.stream:
                    console.answer(piece.text)
                else:
                    held_back.append(piece.text)
    finally:
        console.answer("".join(held_back))
        console.end_line()
    assert chat.last is not None
    return chat.last


@contextmanager
def stop_on_interrupt(chat: Chat) -> Iterator[None]:
    """Inside, the first Ctrl-C asks the chat to stop after the token at hand; a second one does not wait."""
    presses = 0

    def on_interrupt(_signal_number: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt
        chat.stop()

    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN:  # started in the background: Ctrl-C is not meant for this process
        yield
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def stats_line(answer: Answer, load_seconds: float) -> str:
    """Tokens, seconds and memory of an answer in one line."""
    usage, timings = answer.usage, answer.timings
    images = f" ({usage.image_tokens} of images)" if usage.image_tokens else ""
    thoughts = f" ({usage.reasoning_tokens} of thoughts)" if usage.reasoning_tokens else ""
    new_tokens, seconds = usage.prompt_tokens - usage.cached_tokens, timings.image + timings.prefill
    cached = f", {usage.cached_tokens} cached" if usage.cached_tokens else ""
    parts = [
        f"prompt {usage.prompt_tokens} tokens{images}{cached} in {seconds:.2f} s"
        + _rate(new_tokens, seconds),
        f"answer {usage.completion_tokens} tokens{thoughts} in {timings.decode:.2f} s"
        + _rate(usage.completion_tokens, timings.decode),
        f"load {load_seconds:.2f} s",
    ]
    if answer.peak_memory_bytes is not None:
        parts.append(f"peak memory {format_bytes(answer.peak_memory_bytes)}")
    line = "; ".join(parts)
    return line if answer.paging is None else f"{line}\n{paging_line(answer.paging)}"


def paging_line(paging: PagingStats) -> str:
    """Where an answer's experts came from: hit rates, bytes read a token, seconds waited."""
    text = paging.banks["text"]
    rate = "" if text.decode_hit_rate is None else f", {text.decode_hit_rate:.0%} of the answer's in memory"
    each = paging.decode_bytes_read / paging.decoded_tokens if paging.decoded_tokens else 0
    read = sum(bank.bytes_read for bank in paging.banks.values())
    prompt = sum(bank.prompt_hits for bank in paging.banks.values())
    wanted = prompt + sum(bank.prompt_misses for bank in paging.banks.values())
    line = (
        f"experts: {prompt} of the prompt's {wanted} pages in memory{rate}; {format_bytes(read)} read, "
        f"{format_bytes(round(each))} a token of the answer; waited {paging.prompt_wait_seconds:.2f} s in "
        f"the prompt, {paging.decode_wait_seconds:.2f} s in the answer"
    )
    if paging.small_pages_used:
        line += f"; {paging.small_pages_used} small pages used"
    return line if paging.gpu is None else f"{line}\n{_gpu_line(paging.gpu)}"


def _gpu_line(gpu: PagingStats) -> str:
    text = gpu.banks["text"]
    rate = "" if text.decode_hit_rate is None else f"{text.decode_hit_rate:.0%} of the answer's there; "
    copied = sum(bank.bytes_read for bank in gpu.banks.values())
    each = gpu.decode_bytes_read / gpu.decoded_tokens if gpu.decoded_tokens else 0
    return (
        f"GPU: {rate}{format_bytes(copied)} copied to it, {format_bytes(round(each))} a token of the "
        f"answer; waited {gpu.prompt_wait_seconds:.2f} s in the prompt, {gpu.decode_wait_seconds:.2f} s "
        "in the answer"
    )


def cut_off_line(answer: Answer) -> str:
    """What to say of an answer that a limit has ended."""
    num_tokens = answer.usage.completion_tokens
    return f"the answer was cut off after {num_tokens} tokens: --max-tokens or --ctx-size is the limit"


def _rate(num_tokens: int, seconds: float) -> str:
    return f" ({num_tokens / seconds:.1f}/s)" if seconds > 0 else ""
