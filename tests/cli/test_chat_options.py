"""What the options mean: sizes, the model's own sampling, and options that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_cli.chat.options import ChatOptions
from ernie_cli.chat.request import check_chat_options
from ernie_cli.failures import failure_of
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.loading import LoadOptions
from ernie_local.sampling import SamplingOptions
from tests.cli.running import Command


def test_flags_win_over_the_models_own_sampling() -> None:
    of_model = SamplingOptions(temperature=0.2, top_p=0.8, top_k=40)
    assert ChatOptions().sampling(of_model) == of_model
    chosen = ChatOptions(temperature=0.0, top_p=0.5, seed=7).sampling(of_model)
    assert chosen == SamplingOptions(temperature=0.0, top_p=0.5, top_k=40, seed=7)


def test_load_gets_the_options_that_it_has_too() -> None:
    given = ChatOptions(context_size="32k", ram="6GiB", kv_dtype="int8", misses="split").load_options()
    assert given == LoadOptions(context_size=32768, ram="6GiB", kv_dtype="int8", misses="split")
    assert ChatOptions().load_options() == LoadOptions()


def test_sizes_accept_32k() -> None:
    options = ChatOptions(context_size="32k", max_tokens="1k", think_budget="512")
    assert (options.context_tokens(), options.max_tokens_count(), options.think_budget_count()) == (
        32768,
        1024,
        512,
    )
    assert ChatOptions(think_budget="0").think_budget_count() == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ChatOptions(context_size="many"), "--ctx-size 'many'"),
        (ChatOptions(max_tokens="-5"), "--max-tokens '-5'"),
        (ChatOptions(think_budget="x"), "--think-budget 'x'"),
        (ChatOptions(max_tokens="4k", context_size="2k"), "4096 does not fit into --ctx-size 2048"),
        (ChatOptions(think="off", think_budget="5"), "--think off"),
        (ChatOptions(load=Path("x.json"), system="s"), "--system with --load"),
        (ChatOptions(save=Path("/")), "directory"),
        (
            ChatOptions(save=Path("chat.json"), images=("a.png", "-:2")),
            "--save with --image -",
        ),
        (ChatOptions(save=Path("no/where/chat.json")), "not a directory"),
    ],
)
def test_contradictions_are_usage_errors(options: ChatOptions, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_chat_options(options)
    assert told in failure_of(caught.value).text()


def test_a_chat_to_load_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="no saved chat"):
        check_chat_options(ChatOptions(load=tmp_path / "chat.json"))


def test_a_chat_is_not_saved_over_a_image(tmp_path: Path) -> None:
    target = tmp_path / "invoice.png"
    target.write_bytes(b"\x89PNG")
    with pytest.raises(UsageError, match="will not write a chat over"):
        check_chat_options(ChatOptions(save=target))
    target.write_bytes(b' {"version": 1}')
    check_chat_options(ChatOptions(save=target))


def test_wrong_sampling_values_end_with_2_before_the_weights(
    command: Command, no_weights: None, small_model: Path
) -> None:
    for flags in (("--temp", "nan"), ("--top-p", "0"), ("--seed", str(2**64))):
        assert command("chat", str(small_model), "-p", "hi", *flags).exit_code == 2
