"""Names the values in an answer: `total`, `lines[0].price`, and `["in quotes"]` what is more than a word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_PLAIN_NAME = re.compile(r"[\w-]+")


def named(path: str, name: str) -> str:
    """The path of the value `name` in the object at `path`, "" for the whole answer."""
    if not _PLAIN_NAME.fullmatch(name):
        return f"{path}[{json.dumps(name, ensure_ascii=False)}]"
    return f"{path}.{name}" if path else name


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that holds no others, with its path, in their order."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from leaves(one, named(path, name))
    elif isinstance(value, list) and value:
        for index, one in enumerate(value):
            yield from leaves(one, f"{path}[{index}]")
    else:
        yield path, value
