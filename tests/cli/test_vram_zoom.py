"""`vram --zoom`: parts are priced as a chat with the zoom tool takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from ernie_cli.vram.command import VramOptions
from ernie_cli.vram.report import converse, find_model
from ernie_local.session import Chat, ImagePart
from ernie_local.text.tokenizer import ErnieTokenizer
from tests.cli.running import Command
from tests.pdf_files import one_page
from tests.runtime.conftest import ScriptedModel, Talk, tokenizer, tokenizer_directory

__all__ = ["tokenizer", "tokenizer_directory"]  # fixtures
VRAM = ("vram", "--bits", "4", "--ram", "32GiB")
ALL, QUARTER = [0, 0, 1000, 1000], [0, 0, 500, 500]


def call(box: list[int]) -> str:
    """What a model says to zoom into a box of the first picture."""
    arguments = {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": box, "img_idx": 0}}
    return f"so\n</think>\n\n<tool_call>\n{json.dumps(arguments)}\n</tool_call>\n"


@pytest.fixture(params=["photo", "scan", "page", "trimmed"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """An image file and whether its margins are cut: smaller and larger than the model sees, drawn anew."""
    path = tmp_path / ("page.pdf" if request.param == "page" else "image.png")
    if request.param == "page":
        path.write_bytes(one_page(b"0 0 100 50", b"", more=()))
    else:
        image = Image.new("RGB", (100, 60) if request.param == "photo" else (900, 700), "white")
        image.paste("red", (20, 20, 60, 40) if request.param == "photo" else (200, 100, 700, 300))
        image.save(path)
    return path, request.param == "trimmed"


def test_a_chat_takes_what_was_priced(
    given: tuple[Path, bool],
    tokenizer: ErnieTokenizer,
    tmp_path: Path,
) -> None:
    path, is_trimmed = given
    scripted = ScriptedModel(tokenizer, tmp_path, 2000)
    options = VramOptions(model="nano", image=(str(path),), zoom=2, trim=is_trimmed, context_size="2000")
    size = find_model(options)
    scripted.files.image_processor = scripted.image_processor = size.processor
    plan = converse(size, options).on_cpu

    def used(*boxes: list[int]) -> int:
        talk = Talk(Chat(cast("Any", scripted), variant="thinking", zoom=True))
        talk.engine.say(*map(call, boxes), "</think>\n\nDone.")
        list(talk.chat.ask("What?", images=[ImagePart(path, trim=is_trimmed)]))
        answer = talk.chat.last
        assert answer is not None
        assert [step.is_error for step in answer.steps] == [False] * len(boxes)
        return answer.usage.image_tokens

    assert plan.image_tokens == used(ALL, ALL) + 3 * 2  # and the tags around each
    assert used(QUARTER, ALL) <= used(ALL, ALL)


def test_the_parts_stand_among_the_images_and_in_the_object(command: Command) -> None:
    ask = (*VRAM, "--image", "2480x3508", "--image", "100x100", "--ctx-size", "64k", "--dtype", "bfloat16")
    plain, zoomed = (command(*ask, *more, "--json").json() for more in ((), ("--zoom", "3")))
    assert plain["zoom"] is None
    zoom = zoomed["zoom"]
    assert [image["name"] for image in zoomed["images"][2:]] == [f"2480x3508 (zoom {n})" for n in (1, 2, 3)]
    assert {image["tokens"] for image in zoomed["images"][2:]} == {zoom["tokens"]} == {6138}
    assert zoom["kv_bytes"] == 3 * 6138 * zoomed["conversation"]["kv_bytes_per_token"]
    plainly = command("vram", *ask[3:], "--zoom", "1", "--json").json()
    # 27 layers of 64 experts of three matrices of 2560 x 512, in bfloat16.
    assert plainly["zoom"]["vision_bank_bytes"] == 27 * 64 * 3 * 2560 * 512 * 2
    shown = command(*ask, "--zoom", "3").stdout
    assert "zoom: 3 parts, up to 6138 tokens each" in shown
    assert "the vision bank of experts comes back for each part" in shown


def test_experts_are_those_of_the_bits_that_were_solved_for_and_of_the_gpu(command: Command) -> None:
    ask = ("--image", "56x56", "--zoom", "1", "--json")
    solved = command("vram", "--solve", "bits", "--ram", "24GiB", *ask).json()
    again = command("vram", "--bits", solved["solved"]["bits"], "--ram", "24GiB", *ask).json()
    assert solved["zoom"]["vision_bank_bytes"] == again["zoom"]["vision_bank_bytes"]
    on_cpu, on_gpu = (
        command("vram", "nano", *more, *ask).json()["zoom"]["vision_bank_bytes"]
        for more in (("--ram", "8GiB"), ("--ram", "8GiB", "--vram", "8GiB"))
    )
    assert on_cpu == 2 * on_gpu, "float32 beside bfloat16"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--zoom", "2"), 2, "--zoom 2 without an image"),
        (("--image", "2480x3508", "--zoom", "8", "--ctx-size", "32k"), 3, "the context has 32768"),
        (("--image", "2480x3508", "--zoom", "0"), 2, "0"),
        (("--sessions", "--vram", "16GiB", "--image", "1x1", "--zoom", "1"), 2, "--image with --sessions"),
        (("--sessions", "--vram", "16GiB", "--video", "9s@64x48"), 2, "--video with --sessions"),
    ],
)
def test_what_cannot_be_priced_is_refused(
    command: Command, options: tuple[str, ...], code: int, message: str
) -> None:
    result = command(*VRAM, *options)
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
