"""Answers in a form: JSON of a schema, a regular expression, or one of several texts.

`form` says what an answer has to look like, `guide` lets a model write nothing else, and `confidence` tells
how sure it was of each value.
"""

from __future__ import annotations

from ernie_local.structured.form import AnswerForm, FormSource

__all__ = ["AnswerForm", "FormSource"]
