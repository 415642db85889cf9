"""Makes text that others wrote safe to show: what commands a terminal, or hides text, becomes visible.

Names of files, models and tensors come from strangers. Each place that shows them adds what it needs itself:
the console this alone, a page of HTML or Markdown its own marks too.
"""

from __future__ import annotations

# Controls of ASCII and Latin-1 (escape sequences begin with one), separators of lines, changes of direction.
_CODES = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CODES}
_LINES = {**_VISIBLE, ord("\t"): "\t", ord("\n"): "\n"}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CODES if code > 0x20}


def printable(text: str) -> str:
    """`text` of several lines, safe for a terminal: `\\x1b` for ESC."""
    return text.translate(_LINES)


def printable_line(text: str) -> str:
    """As `printable`, for a name or what is to stay one line: `\\x0a` for a line break."""
    return text.translate(_VISIBLE)


def printable_json(text: str) -> str:
    """JSON with the same meaning, safe for a terminal: writers of JSON escape controls of ASCII alone."""
    return text.translate(_IN_JSON)
