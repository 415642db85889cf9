"""docs/chat-json.md and `--json` say the same: keys, types, and null where nothing is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_cli.chat_json import SCHEMA
from ernie_cli.failures import _CODE_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "chat-json.md"
NUMBER = (int, float)


def examples() -> list[dict[str, Any]]:
    return [
        json.loads(block)
        for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    ]


def shape(value: Any) -> Any:
    """Keys in order, and the kinds of the values."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return "number" if isinstance(value, NUMBER) and not isinstance(value, bool) else type(value).__name__


def test_an_answer_has_the_documented_shape(
    command: Callable[..., Any], fake_chat: Any, invoice: Path
) -> None:
    result = command("chat", "-p", "hi", "--image", str(invoice), "--json")
    value = result.json()
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert shape(value) == shape(examples()[0])
    assert list(value) == list(examples()[0])
    assert value["schema"] == SCHEMA == examples()[0]["schema"]
    assert value["ok"] is True
    assert value["text"] == "forty-two"
    assert value["timings"] == {"load": 0.25, "image": 0.1, "prefill": 0.2, "decode": 0.4, "total": 0.7}
    assert value["memory"] == {"peak_rss_bytes": 3 << 30}
    assert value["images"] == [
        {"name": str(invoice), "size": [2480, 3508], "resized": [1848, 2604], "tokens": 6138, "scale": 0.7437}
    ]


def test_an_error_has_the_same_keys_with_null_in_them(command: Callable[..., Any], no_weights: None) -> None:
    result = command("chat", "somewhere", "-p", "hi", "--image", "missing.png", "--json")
    value = result.json()
    assert result.exit_code == 5
    assert list(value) == list(examples()[0])
    assert shape(value["error"]) == shape(examples()[1])
    assert list(value["usage"]) == list(examples()[0]["usage"])
    assert list(value["timings"]) == list(examples()[0]["timings"])
    assert set(value["usage"].values()) == set(value["timings"].values()) == {None}
    assert (value["ok"], value["model"], value["text"], value["images"]) == (False, "somewhere", None, [])
    assert "missing.png" in value["error"]["what"]
    assert len(result.stderr.splitlines()) == 3


def test_every_key_and_every_error_code_is_explained() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for key in examples()[0]:
        assert re.search(rf"^\| `{key}[`.\[]", page, re.MULTILINE), key
    for exit_code, name in _CODE_NAMES.items():
        assert re.search(rf"^\| {exit_code} \| `{name}`", page, re.MULTILINE), name


@pytest.mark.parametrize(
    "text", ["\u2028 \x1b[31m", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]
)
def test_any_text_stays_on_one_line(command: Callable[..., Any], fake_chat: Any, text: str) -> None:
    from ernie_local.text.reasoning import Piece

    fake_chat.pieces = (Piece("answer", text),)
    result = command("chat", "-p", "hi", "--json")
    assert result.json()["text"] == text
    assert result.stdout.count("\n") == 1
