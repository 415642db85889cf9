"""`--lora` on the command line: what is told of an adapter, what it changes and takes, what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.loading import LoadOptions
from ernie_local.model_files import find_model_files
from ernie_local.server.logprobs import token_objects
from ernie_local.session import Chat, open_model
from tests.cli.running import Command
from tests.runtime.random_adapters import random_adapter, write_peft


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = read_config(NANO_DIRECTORY)
    directory = tmp_path_factory.mktemp("adapters") / "large"
    return write_peft(directory, random_adapter(config, rank=2, size=5.0), config, rank=2)


def test_an_adapter_changes_the_answer_and_is_named(command: Command, adapter: Path) -> None:
    ask = ("chat", "nano", "-p", "What is 3 plus 4?", "--max-tokens", "8")
    plain, adapted = command(*ask), command(*ask, "--lora", f"{adapter}:2")
    # A random adapter may leave no answer at all.
    assert plain.exit_code == 0
    assert (adapted.exit_code, adapted.stdout) != (0, plain.stdout)
    assert adapted.exit_code in (0, 7)
    assert f"adapter {adapter} times 2: added to 522 weights, of rank 2, " in adapted.stderr
    assert "adapter" not in plain.stderr


def test_vram_counts_what_load_takes(command: Command, adapter: Path) -> None:
    def terms(*more: str) -> dict[str, int]:
        memory = command("vram", "nano", "--ram", "8GiB", "--json", *more).json()["cpu"]["memory"]
        return {
            term["name"]: term["phases"]["decode"]["best"]
            for term in memory["terms"]
            if "decode" in term["phases"]
        }

    given = ("--lora", str(adapter))
    assert "adapters" not in terms()
    one, two = terms(*given)["adapters"], terms(*given, *given)["adapters"]
    assert two == 2 * one > 0
    # bfloat16 beside packed weights, float32 beside nano's.
    assert terms(*given, "--bits", "4")["adapters"] == one // 2


@pytest.mark.parametrize(
    ("given", "exit_code", "message"),
    [
        ("nowhere", 4, "error: nowhere cannot be read"),
        ("{adapter}:nan", 2, "--lora {adapter}:nan asks for an adapter times nan"),
        ("{adapter}:0", 2, "what it adds is multiplied by a finite number other than 0"),
    ],
)
def test_what_is_no_adapter_is_refused_in_three_lines(
    command: Command, adapter: Path, given: str, exit_code: int, message: str
) -> None:
    refused = command("chat", "nano", "-p", "hi", "--lora", given.format(adapter=adapter))
    assert refused.exit_code == exit_code
    assert message.format(adapter=adapter) in refused.stderr
    assert len(refused.stderr.splitlines()) == 3


@pytest.mark.slow
def test_mixed_bits_of_an_adapted_model_are_those_of_the_merged_one(
    command: Command, adapter: Path, tmp_path: Path
) -> None:
    """What is measured, chosen and written, to the bit."""
    lora = ("--lora", f"{adapter}:0.02")
    samples, mixed = ("--samples", "3"), ("--bits", "mixed", "--target-size", "12MiB")
    merged, kept = tmp_path / "merged", tmp_path / "kept.json"
    assert command("export", "nano", str(merged), "--merge-lora", lora[1]).exit_code == 0
    assert command("calibrate", "nano", str(kept), *samples, *lora).exit_code == 0
    refused = command(
        "quantize", "nano", str(tmp_path / "plain"), *mixed, *samples, "--statistics", str(kept)
    )
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-3].startswith("error: ")
    for source, out, more in (
        ("nano", "adapted", (*lora, "--statistics", str(kept))),
        (str(merged), "expected", ()),
    ):
        made = command("quantize", source, str(tmp_path / out), *mixed, *samples, *more)
        assert made.exit_code == 0, made.stderr
    weights, wanted = (load_file(tmp_path / out / "model.safetensors") for out in ("adapted", "expected"))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in weights)
    tables = [read_config(tmp_path / out).quantization for out in ("adapted", "expected")]
    assert tables[0] is not None
    assert tables[1] is not None
    assert tables[0].experts == tables[1].experts
    assert len({one for formats in tables[0].experts.values() for one in formats}) > 1


QUESTION = "What is 3 plus 4?"


def ask_served(command: Command, *options: str) -> Any:
    """The first choice that `serve nano` answers with, which ends then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    found: list[Any] = []

    def fetch(path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(url + path, body, timeout=60) as answer:
            return json.load(answer)

    def ask() -> None:
        for _ in range(600):
            try:
                fetch("/health")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        asked = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 8}
        try:
            found.append(
                fetch(
                    "/v1/chat/completions",
                    json.dumps({**asked, "logprobs": True, "top_logprobs": 3}).encode(),
                )
            )
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    served = command("serve", "nano", "--port", url.rpartition(":")[2], *options)
    asking.join()
    assert served.exit_code == 0, served.stderr
    return found[0]["choices"][0]


@pytest.mark.slow
def test_a_server_answers_with_an_adapter_as_a_chat_does(command: Command, adapter: Path) -> None:
    said: list[str] = []
    for lora in ([], [f"{adapter}:0.05"]):
        options = [part for one in lora for part in ("--lora", one)]
        choice = ask_served(command, *options)
        chatted = command("chat", "nano", "-p", QUESTION, "--max-tokens", "8", "--json", *options).json()
        assert choice["message"]["content"] == chatted["text"]
        chat = Chat(open_model(find_model_files("nano"), LoadOptions(context_size=4096, lora=lora)))
        chat.top_scores = 3
        scores = [score for piece in chat.ask(QUESTION, max_tokens=8) for score in piece.scores]
        assert choice["logprobs"]["content"] == token_objects(scores)
        said.append(json.dumps(choice["logprobs"]))
    assert said[0] != said[1]
