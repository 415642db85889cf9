"""The parser of generated text: what it finds, and that no cut of the text changes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.text.reasoning import OUTPUT_TAGS, Piece, ReasoningParser, ToolCall, parse_tool_call

CALL_TEXT = '{"name": "zoom", "arguments": {"box": [1, 2]}}'
CALL = f"<tool_call>\n{CALL_TEXT}\n</tool_call>"
FRAGMENTS = (
    *OUTPUT_TAGS, CALL, "\n", "\n\n", "text", "<", "</", "thi", "<thi", "nk>", " ", '{"name": "f"}',
    "<tool_call>{}</tool_call>", "</tool", "_call>", "</resp", "onse>",
)  # fmt: skip
generated_text = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map(
    "".join
)


def parse(parts: list[str], in_reasoning: bool, with_tools: bool) -> tuple[str, str, list[ToolCall]]:
    """(reasoning, answer, calls) of text that comes in `parts`."""
    parser = ReasoningParser(in_reasoning, with_tools)
    pieces = [piece for part in parts for piece in parser.push(part)] + parser.finish()
    assert all(piece.text for piece in pieces)

    def joined(kind: str) -> str:
        return "".join(piece.text for piece in pieces if piece.kind == kind)

    return joined("reasoning"), joined("answer"), parser.tool_calls


@given(text=generated_text, in_reasoning=st.booleans(), with_tools=st.booleans(), data=st.data())
def test_any_cut_gives_the_same(text: str, in_reasoning: bool, with_tools: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse([text], in_reasoning, with_tools)
    assert parse(parts, in_reasoning, with_tools) == whole
    assert parse(list(text), in_reasoning, with_tools) == whole


@given(text=generated_text, in_reasoning=st.booleans())
def test_no_letter_is_lost(text: str, in_reasoning: bool) -> None:
    """Only tags and newlines may go."""
    reasoning, answer, _ = parse([text], in_reasoning, with_tools=False)
    kept = reasoning + answer
    for tag in OUTPUT_TAGS:
        text, kept = text.replace(tag, ""), kept.replace(tag, "")
    assert kept.replace("\n", "") == text.replace("\n", "") or "<" in text


@given(text=generated_text, in_reasoning=st.booleans(), with_tools=st.booleans())
def test_no_tag_stays_in_the_answer(text: str, in_reasoning: bool, with_tools: bool) -> None:
    _, answer, _ = parse(list(text), in_reasoning, with_tools)
    assert [tag for tag in OUTPUT_TAGS if tag in answer] == []


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("why\n</think>\n\n\nforty-two\n", "why", "forty-two"),
        ("\nwhy\n\nso\n</think>\n\nline\n\nline", "why\n\nso", "line\n\nline"),
        ("</think>\n\nanswer", "", "answer"),
        ("why</think><response>\nanswer\n</response>\n", "why", "answer"),
        ("why</think>\n\n<response>a</response>b", "why", "ab"),
        ("<think>again</think>answer", "again", "answer"),
        ("never closed", "never closed", ""),
        ("a</think>b</think>c", "a", "bc"),
        ("a</think>the tag <think> opens, <response> too", "a", "the tag  opens,  too"),
        ("a</think>b</response>", "a", "b"),
        ("a</think>b\n</think>\n", "a", "b"),
        ("a</think>b<thi</think>nk>c", "a", "bc"),  # what remains when a tag goes is no tag
        ("a</think>b<<thi<thi</think>nk>nk>c", "a", "b<c"),
        ("a</think><thi</think>nk>\n\nb", "a", "b"),
        ("a</think>1 < 2 << 3", "a", "1 < 2 << 3"),
        ("a</think>b</thi", "a", "b</thi"),
        ("a</thi", "a</thi", ""),
        ("a</think> spaced ", "a", " spaced "),
        ("", "", ""),
    ],
)
def test_reasoning_is_told_from_the_answer(text: str, reasoning: str, answer: str) -> None:
    assert parse([text], in_reasoning=True, with_tools=False) == (reasoning, answer, [])


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("forty-two", "", "forty-two"),
        ("\n</think>\n\nforty-two", "", "forty-two"),  # a second closing of a thought that was closed already
        ("<think>\nwhy\n</think>\n\n42", "why", "42"),  # it thinks although it was not to
        ("\n\n<response>42</response>", "", "42"),
        (CALL, "", CALL_TEXT),  # no tools were given
        ("</thi<think>why</think>42", "", "</thiwhy42"),  # the answer has begun
    ],
)
def test_text_that_starts_with_the_answer(text: str, reasoning: str, answer: str) -> None:
    assert parse([text], in_reasoning=False, with_tools=False) == (reasoning, answer, [])


@pytest.mark.parametrize(
    ("text", "answer", "num_calls"),
    [
        (CALL, "", 1),
        (f"\n\n{CALL}\n{CALL}\n", "", 2),
        (f"I look closer.\n\n{CALL}\n", "I look closer.", 1),
        (f"before\n{CALL}\nafter", "before\n\nafter", 1),
        ('<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2]}', "", 1),  # the end is missing
        ('<tool_call>{"name": "zoom", "arguments": {"box": [1, 2]}</tool_call>', "", 1),  # a brace is
        ("<tool_call>not json</tool_call>!", "not json!", 0),
        ("<tool_call>\nnot json", "not json", 0),
        ('<tool_call>{"arguments": {}}</tool_call>', '{"arguments": {}}', 0),
        ("a </tool_call> b", "a  b", 0),
        (f"a<thi{CALL}nk>b", "ab", 1),
    ],
)
def test_tool_calls_are_taken_out(text: str, answer: str, num_calls: int) -> None:
    expected = [ToolCall("zoom", {"box": [1, 2]})] * num_calls
    assert parse([f"why\n</think>{text}"], in_reasoning=True, with_tools=True) == ("why", answer, expected)


def test_a_call_in_the_reasoning_is_a_thought() -> None:
    assert parse([f"{CALL}</think>ok"], in_reasoning=True, with_tools=True) == (CALL, "ok", [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"name": 3}',
        '{"name": "f", "arguments": []}',
        '{"name": "f"',
        '{"arguments":' * 100_000,
    ],
)
def test_what_is_no_call(text: str) -> None:
    call = parse_tool_call(text)
    assert call is None or call == ToolCall("f", {})


def test_it_says_whether_it_is_in_the_reasoning() -> None:
    parser = ReasoningParser(in_reasoning=True)
    seen = []
    for text in ("why", "</thi", "nk>", "\n<think>", "</think>", "answer <think>"):
        parser.push(text)
        seen.append(parser.in_reasoning)
    assert seen == [True, True, False, True, False, False]


def test_text_comes_as_soon_as_it_is_certain() -> None:
    parser = ReasoningParser(in_reasoning=True)
    assert parser.push("why") == [Piece("reasoning", "why")]
    assert parser.push(" <") == [Piece("reasoning", " ")]
    assert parser.push("b") == [Piece("reasoning", "<b")]
    assert parser.push("\n") == []
    assert parser.push("</think>") == []
    assert parser.push("\n\n4") == [Piece("answer", "4")]
    assert parser.push("\n") == []
    assert parser.push("2") == [Piece("answer", "\n2")]
    assert parser.finish() == []
