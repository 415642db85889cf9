"""Names the values in an answer: `total`, `lines[0].price`, and `["in quotes"]` what is more than a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ernie_local.structured.confidence import named


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
