"""Turns `response_format`, and a tool that has to be called, into forms that answers are held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ernie_local.errors import UsageError
from ernie_local.server.failures import api_error, bad_request
from ernie_local.server.requests import ChosenTool, ResponseFormat, Tool
from ernie_local.structured import AnswerForm


def form_of(response_format: ResponseFormat | None) -> AnswerForm | None:
    """None for free text. ApiError 400 that names the place of what cannot be used in a schema."""
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return AnswerForm.of({"type": "object"})
    named = response_format.json_schema
    if named is None or named.schema is None:
        raise bad_request("a json_schema without its schema", "response_format")
    try:
        return AnswerForm.of(named.schema)
    except UsageError as error:
        raise api_error(error, "response_format") from error


def call_form_of(
    tools: Sequence[Tool], choice: Literal["auto", "none", "required"] | ChosenTool | None
) -> AnswerForm | None:
    """The form of a call, where one has to be made; None where the model is free.

    ApiError 400 for a tool that is not there, or whose parameters cannot be used.
    """
    if choice in (None, "auto", "none"):
        return None
    chosen = list(tools)
    if isinstance(choice, ChosenTool):
        chosen = [tool for tool in tools if tool.function.name == choice.function.name]
    if not chosen:
        raise bad_request("tool_choice asks for a call of a tool that is not among the tools", "tool_choice")
    try:
        definitions: dict[str, Any] = {}
        calls = [_call_schema(tool, definitions) for tool in chosen]
        form = AnswerForm.of({"anyOf": calls, "$defs": definitions})
    except UsageError as error:
        raise api_error(error, "tools") from error
    return form.with_instruction("Answer with a call of a tool, as JSON with its name and arguments.")


def _call_schema(tool: Tool, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a call. definitions: gets those of the parameters, under names of their own."""
    name = tool.function.name
    parameters = _with_references(tool.function.parameters or {"type": "object"}, name)
    for key, one in parameters.pop("$defs", {}).items():
        definitions[f"{name}.{key}"] = one
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
    }


def _with_references(value: Any, name: str) -> Any:
    """A copy in which references lead to the definitions of this tool."""
    if isinstance(value, list):
        return [_with_references(one, name) for one in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _with_references(one, name) for key, one in value.items()}
    reference = copy.get("$ref")
    if isinstance(reference, str):
        copy["$ref"] = reference.replace("#/$defs/", f"#/$defs/{name}.", 1)
    return copy
