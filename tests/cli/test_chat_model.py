"""`chat` with a real, tiny model of random weights: bad input told before the weights, and answers."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.running import Command
from tests.pdf_files import encrypted_red_page


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


def bad_images(directory: Path) -> dict[str, Path]:
    """Every way in which an image is none."""
    (directory / "text.png").write_text("Total: 42\n")
    (directory / "empty.png").touch()
    Image.effect_noise((200, 200), 90).save(directory / "whole.png")
    (directory / "truncated.png").write_bytes((directory / "whole.png").read_bytes()[:9000])
    (directory / "huge.png").write_bytes(png_header(30000, 30000))
    (directory / "folder.png").mkdir()
    names = ("missing.png", "text.png", "empty.png", "truncated.png", "huge.png", "folder.png")
    return {name: directory / name for name in names}


def assert_three_lines(result: Any, exit_code: int) -> None:
    assert (result.exit_code, result.stdout) == (exit_code, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[2].startswith("try: ")


@pytest.mark.parametrize(
    "name", ["missing.png", "text.png", "empty.png", "truncated.png", "huge.png", "folder.png"]
)
def test_bad_images_are_told_before_the_model_is_looked_for(
    command: Command, no_weights: None, tmp_path: Path, name: str
) -> None:
    path = bad_images(tmp_path)[name]
    result = command("chat", "no/such/model", "-p", "hi", "--image", str(path))
    assert_three_lines(result, 5)
    assert name in result.stderr


def test_a_directory_without_config_is_told_before_the_weights(
    command: Command, no_weights: None, tmp_path: Path
) -> None:
    for model in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.safetensors"):
        result = command("chat", str(model), "-p", "hi")
        assert_three_lines(result, 4)
        assert model.name in result.stderr


def test_a_prompt_longer_than_the_context_is_told_before_the_weights(
    command: Command, no_weights: None, small_model: Path, invoice: Path
) -> None:
    result = command("chat", str(small_model), "-p", "total " * 3000)
    assert_three_lines(result, 3)
    assert "4096" in result.stderr
    result = command("chat", str(small_model), "-p", "hi", "--image", str(invoice), "--ctx-size", "40")
    # Of an image the report stands first.
    assert result.exit_code == 3
    assert "the context has 40" in result.stderr.splitlines()[0]


def test_a_context_beyond_the_model_is_refused(command: Command, no_weights: None, small_model: Path) -> None:
    result = command("chat", str(small_model), "-p", "hi", "--ctx-size", "8k")
    assert_three_lines(result, 3)
    assert "8192" in result.stderr
    assert "4096" in result.stderr


def test_a_short_question_is_answered_with_figures(
    command: Command, small_model: Path, invoice: Path
) -> None:
    arguments = (
        "chat",
        str(small_model),
        "-p",
        "What is the total?",
        "--max-tokens",
        "6",
        "--image",
        str(invoice),
    )
    result = command(*arguments, "--json", "--temp", "1", "--seed", "5")
    value = result.json()
    assert value["error"] is None or value["error"]["code"] == "no_answer"
    assert value["images"][0]["size"] == [2480, 3508]
    assert value["usage"]["image_tokens"] == value["images"][0]["tokens"] <= 40
    assert 0 < value["usage"]["completion_tokens"] <= 6
    assert value["timings"]["total"] >= value["timings"]["decode"] > 0
    assert value["memory"]["peak_rss_bytes"] > 50 << 20
    again = command(*arguments, "--temp", "1", "--seed", "5")
    assert again.stdout.rstrip("\n") == value["text"].rstrip("\n")


def test_the_report_before_the_model_is_what_the_model_sees(
    command: Command, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ernie_local.session import Chat

    chats: list[Chat] = []
    original = Chat.__init__

    def remember(self: Chat, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        chats.append(self)

    monkeypatch.setattr(Chat, "__init__", remember)
    for width, height in ((1000, 700), (20, 30), (28, 1000), (333, 77)):
        Image.new("RGB", (width, height), "red").save(tmp_path / "a.png")
        value = command(
            "chat",
            str(small_model),
            "-p",
            "hi",
            "--max-tokens",
            "1",
            "--image",
            str(tmp_path / "a.png"),
            "--json",
        ).json()
        last = chats[-1].last
        assert last is not None
        seen = last.images[0]
        assert value["images"][0]["resized"] == list(seen.resized_size)
        assert value["images"][0]["tokens"] == seen.tokens


def test_a_chat_goes_on_where_it_was_saved(
    command: Command, small_model: Path, invoice: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "chat.json"
    flags = ("--max-tokens", "4", "--temp", "2")

    def ask_until_answered(*arguments: str) -> Any:
        for seed in range(20):
            result = command("chat", str(small_model), *flags, "--seed", str(seed), *arguments)
            if result.exit_code == 0:
                return result
        raise AssertionError(result.stderr)

    ask_until_answered("-p", "What?", "--image", str(invoice), "--save", str(saved))
    assert len(json.loads(saved.read_text())["turns"]) == 1
    ask_until_answered("-p", "And now?", "--load", str(saved), "--save", str(saved))
    assert len(json.loads(saved.read_text())["turns"]) == 2


def test_a_saved_chat_about_an_encrypted_pdf_goes_on_with_its_password(
    command: Command, small_model: Path, tmp_path: Path
) -> None:
    path, saved = tmp_path / "locked.pdf", tmp_path / "chat.json"
    path.write_bytes(encrypted_red_page("swordfish"))
    ask = ("chat", str(small_model), "--max-tokens", "4", "-p", "What?")
    asked = command(*ask, "--image", str(path), "--password", "swordfish", "--save", str(saved))
    assert asked.exit_code in (0, 7)
    turn: dict[str, Any] = {
        "question": [{"role": "user", "content": [{"path": str(path), "size": [150, 150]}, "a"]}]
    }
    turn |= {"thinking": False, "reasoning": "", "answer": "b", "tool_calls": [], "finish_reason": "stop"}
    chat = json.loads(saved.read_text())
    assert "swordfish" not in saved.read_text()
    chat["turns"] = [turn]
    saved.write_text(json.dumps(chat))
    goes_on = (*ask, "--load", str(saved))
    assert command(*goes_on, "--password", "swordfish").exit_code in (0, 7)
    assert_three_lines(command(*goes_on), 5)
    assert_three_lines(command(*goes_on, "--password", "trout"), 5)


def test_a_saved_chat_whose_image_is_gone_is_told_before_the_weights(
    command: Command, no_weights: None, small_model: Path, invoice: Path, tmp_path: Path
) -> None:
    turn: dict[str, Any] = {
        "role": "user",
        "text": "a",
        "images": [{"path": str(tmp_path / "gone.png"), "size": [9, 9]}],
    }
    turn |= {"thinking": False, "reasoning": "", "answer": "b", "tool_calls": [], "finish_reason": "stop"}
    chat = {
        "format": "ernie-local chat",
        "version": 1,
        "model": "m",
        "system": None,
        "tools": [],
        "turns": [turn],
    }
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    result = command("chat", str(small_model), "-p", "hi", "--load", str(tmp_path / "chat.json"))
    assert_three_lines(result, 5)
    assert "gone.png" in result.stderr
    (tmp_path / "chat.json").write_text("{}")
    assert_three_lines(
        command("chat", str(small_model), "-p", "hi", "--load", str(tmp_path / "chat.json")), 5
    )


def test_a_model_without_a_tokenizer_says_which_file_is_missing(
    command: Command, small_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(small_model, directory)
    (directory / "tokenizer.model").unlink()
    result = command("chat", str(directory), "-p", "hi")
    assert_three_lines(result, 4)
    assert "tokenizer.model" in result.stderr


def test_interactive_with_a_real_model(
    command: Command, small_model: Path, invoice: Path, tmp_path: Path
) -> None:
    lines = (f"/image {invoice}", "What?", "/stats", "/undo", "And?", f"/save {tmp_path / 'c.json'}", "/exit")
    result = command(
        "chat",
        str(small_model),
        "-i",
        "--max-tokens",
        "3",
        stdin="".join(f"{line}\n" for line in lines).encode(),
    )
    assert result.exit_code == 0
    assert "internal error" not in result.stderr
    assert (tmp_path / "c.json").is_file()


def test_the_system_text_of_a_saved_chat_outlives_retry_undo_and_clear(
    command: Command, small_model: Path, tmp_path: Path
) -> None:
    question = [
        {"role": "system", "content": ["Be brief."]},
        {"role": "user", "content": ["one"]},
        {"role": "user", "content": ["two"]},
    ]
    turn = {
        "question": question,
        "thinking": False,
        "reasoning": "",
        "answer": "a",
        "tool_calls": [],
        "finish_reason": "stop",
    }
    chat = {
        "format": "ernie-local chat",
        "version": 2,
        "model": "m",
        "system": None,
        "tools": [],
        "turns": [turn],
    }
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    lines = ("/retry", f"/save {tmp_path / 'again.json'}", "/undo", "/system", "three", "/clear", "/system")
    result = command(
        "chat",
        str(small_model),
        "-i",
        "--load",
        str(tmp_path / "chat.json"),
        "--max-tokens",
        "3",
        stdin="".join(f"{line}\n" for line in lines).encode(),
    )
    assert result.exit_code == 0
    saved = json.loads((tmp_path / "again.json").read_text())
    assert [turn["question"] for turn in saved["turns"]] == [question]
    assert saved["turns"][0]["answer"] != "a"
    assert result.stderr.count("system: Be brief.") == 2


def test_the_chat_template_can_be_chosen(command: Command, small_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    source = "{{ cls_token }}User: {{ messages[-1].content }}\nAssistant: "
    files = {"cls_token": "<|begin_of_sentence|>", "chat_template": source}
    (model / "tokenizer_config.json").write_text(json.dumps(files))

    def prompt_tokens(*options: str) -> int:
        result = command("chat", str(model), "-p", "hi", "--json", "--max-tokens", "1", *options).json()
        return int(result["usage"]["prompt_tokens"])

    usual = prompt_tokens()
    assert prompt_tokens("--template", "pt") == usual
    # Both without <think> and </think>; this tokenizer makes spaces of line breaks.
    assert prompt_tokens("--template", "pt,thinks=free") == usual - 2
    assert prompt_tokens("--template", "file") == usual - 2
    assert prompt_tokens("--template", "thinking", "-s", "S") > usual


@pytest.mark.parametrize(
    ("name", "exit_code", "words"),
    [
        ("chatml", 2, "--template 'chatml'"),
        ("pt,tools=first", 2, "tools=before|after"),
        ("file", 4, "--template file"),
    ],
)
def test_a_template_that_is_not_there_is_told_before_the_weights(
    command: Command, no_weights: None, small_model: Path, name: str, exit_code: int, words: str
) -> None:
    result = command("chat", str(small_model), "-p", "hi", "--template", name)
    assert_three_lines(result, exit_code)
    assert words in result.stderr


def test_rules_for_spaces_are_told(command: Command, small_model: Path) -> None:
    """The tiny model's tokenizer was trained with the library's default for them."""
    told = command("chat", str(small_model), "-p", "hi", "--max-tokens", "1").stderr
    assert "removes extra spaces" in told
    inspected = command("inspect", str(small_model), "--json").json()
    assert ["removes extra spaces" in note for note in inspected["notes"]] == [True]


def test_device_that_is_not_there(command: Command, small_model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert_three_lines(command("chat", str(small_model), "-p", "hi", "--device", "cuda"), 3)
    assert_three_lines(command("chat", str(small_model), "-p", "hi", "--device", "abacus"), 2)


def test_vram_without_a_gpu_is_refused(command: Command) -> None:
    result = command("chat", "-p", "hi", "--vram", "4GiB", "--device", "cpu")
    assert_three_lines(result, 2)
    assert "--vram" in result.stderr


def test_options_of_paging_that_change_nothing_are_named(command: Command) -> None:
    result = command("chat", "-p", "hi", "--max-tokens", "2", "--misses", "compute")
    assert "--misses: no effect" in result.stderr
    assert command("chat", "-p", "hi", "--small-below", "nan").exit_code == 2
    refused = command("chat", "-p", "hi", "--small-below", "0.1").stderr
    assert "small pages" in refused
    assert "0 of them" in refused


def test_images_shrink_as_it_is_asked_for(command: Command) -> None:
    """chat and vram agree, and a number that cannot be is a wrong option."""
    image = str(Path(__file__).parents[2] / "examples" / "invoice.png")
    found = {}
    for option in (
        "",
        "--max-pixels 20k",
        "--image-tokens 30",
        "--detail low",
        "--trim",
        "--trim --image-tokens 50",
    ):
        given = option.split()
        answer = command("chat", "nano", "-p", "?", "--image", image, "--max-tokens", "1", "--json", *given)
        plan = command("vram", "nano", "--image", image, "--json", *given).json()
        (said,), (planned,) = answer.json()["images"], plan["images"]
        assert (said["resized"], said["tokens"]) == (planned["resized_size"], planned["tokens"])
        assert (said["crop"], said["max_tokens"]) == (planned["crop"], planned["max_tokens"])
        assert answer.json()["usage"]["image_tokens"] == said["tokens"]
        found[option] = said
    full = found[""]
    assert (full["crop"], full["max_tokens"]) == (None, None)
    assert found["--max-pixels 20k"]["tokens"] < full["tokens"] / 2
    assert (found["--image-tokens 30"]["max_tokens"], found["--image-tokens 30"]["tokens"]) == (30, 24)
    # nano's own limit is lower than that of low.
    assert found["--detail low"] == full
    assert found["--trim"]["crop"] is not None
    assert found["--trim --image-tokens 50"]["crop"] == found["--trim"]["crop"]
    asked = ("chat", "nano", "-p", "?", "--image", image)
    for wrong in (
        ("--max-pixels", "5"),
        ("--image-tokens", "1"),
        ("--image-tokens", "x"),
        ("--detail", "some"),
    ):
        assert_three_lines(command(*asked, *wrong), 2)


def test_what_was_cut_and_bounded_is_said(command: Command, tmp_path: Path) -> None:
    page = Image.new("RGB", (800, 600), "white")
    page.paste((0, 0, 0), (300, 200, 500, 300))
    page.save(tmp_path / "page.png")
    asked = ("chat", "nano", "-p", "?", "--max-tokens", "1", "--image", str(tmp_path / "page.png"))
    shown = command(*asked, "--trim", "--image-tokens", "20").stderr
    assert re.search(r"page\.png trimmed 800x600 to 2\d\dx1\d\d -> \d+x\d+, 1\d of at most 20 tokens", shown)
    assert "trimmed" not in command(*asked).stderr
    Image.new("RGB", (1500, 50), "red").save(tmp_path / "page.png")
    assert_three_lines(command(*asked, "--image-tokens", "10"), 5)
