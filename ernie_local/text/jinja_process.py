"""Renders a chat template in a process of its own: a template is a program, and may run for ever.

The process reads its job, a JSON object, from stdin, and writes a list of one object for each rendering: its
text, or its error. The system ends a process that takes too much time or memory.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_MOST_ERROR_CHARACTERS = 300


class _GenerationTag(jinja2.ext.Extension):
    """Takes {% generation %}, which marks for training what the assistant says, and writes its body."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Without attributes that begin with an underscore, which lead out of the sandbox."""

    def __init__(*args: Any, **settings: Any) -> None:
        self, values = args[0], dict(*args[1:], **settings)
        for name in values:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_attribute(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def main() -> None:
    """Do the job on stdin."""
    job = json.load(sys.stdin.buffer)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, job["memory_bytes"])
    _limit(resource.RLIMIT_CPU, job["seconds"])
    results = [_render(one["source"], one["variables"], job["characters"]) for one in job["renderings"]]
    sys.stdout.write(json.dumps(results))


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _render(source: str, variables: dict[str, object], most_characters: int) -> dict[str, str]:
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in _environment().from_string(source).generate(variables):
            num_characters += len(piece)
            if num_characters > most_characters:
                return {"error": f"it writes more than {most_characters} characters"}
            pieces.append(piece)
    except Exception as error:  # noqa: BLE001  a template becomes Python code, which may raise any
        return {"error": f"{type(error).__name__}: {str(error)[:_MOST_ERROR_CHARACTERS]}"}
    return {"text": "".join(pieces)}


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What transformers gives a chat template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace
    )
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if ensure_ascii:
        # It would escape the marks that keep tags in a user's text from becoming tags.
        raise jinja2.TemplateError("tojson(ensure_ascii=true) is not supported")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the attribute {name!r} of a namespace begins with _")


if __name__ == "__main__":
    main()
