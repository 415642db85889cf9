"""Lays records out as tables: one row for each document, and a table for each list in the fields.

The columns come from the schema, so that they are the same whatever was found. Objects inside are flattened:
`buyer.name`. A list has a table of its own, with a row for each item, which `file`, `page` and `index` tie to
its document; a list in it has another one. What has no columns of its own, such as an object of any names, is
one cell of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ernie_local.errors import UsageError
from ernie_local.extraction.record import Record
from ernie_local.extraction.schema_sample import JSONSchema, resolved
from ernie_local.structured.confidence import named

_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_REST = "*"  # the column of names that a schema allows without naming them
_ITEM = "value"  # the column of a list that holds no objects
MOST_COLUMNS = 16_000  # a sheet of Excel has 16,384
_MOST_DEPTH = 40  # of a schema; those that contain themselves end at their first repetition


class TableColumn(NamedTuple):
    """A column of fields.

    keys: from the row's object to the value. form: "date" or another format, or "". step: what the path of a
    value has after that of its row. known: of an object whose other names share this column, the names that
    have columns of their own.
    """

    name: str
    keys: tuple[str, ...]
    form: str = ""
    step: str = ""
    known: frozenset[str] | None = None


class TableCell(NamedTuple):
    """value: None, a bool, an int, a float or a text. path: of the value in the fields; "" for none."""

    value: bool | int | float | str | None
    path: str = ""
    form: str = ""


@dataclass(slots=True)
class _Table:
    """A table while the schema is read. outer: the lists around it. number: in the order of the tables."""

    name: str
    outer: tuple[str, ...] = ()
    columns: list[TableColumn] = field(default_factory=list)
    lists: list[tuple[tuple[str, ...], _Table]] = field(default_factory=list)
    number: int = 0


@dataclass(frozen=True, slots=True)
class TableLayout:
    """One table. name: "" for that of the documents, else the list, as in `lines`. header: of its columns."""

    name: str
    header: tuple[str, ...]


class RecordTables:
    """The tables of a schema. `layouts` has the one of the documents first."""

    def __init__(self, schema: JSONSchema) -> None:
        """schema: of the fields, an object. UsageError for one of more than MOST_COLUMNS fields."""
        self._root = schema
        self._num_columns = 0
        self._main = _Table("")
        self._read_object(schema, (), self._main, "", ())
        tables = list(_all_tables(self._main))
        for number, table in enumerate(tables):
            table.number = number
        self.layouts = [TableLayout(table.name, _header(table)) for table in tables]

    def rows(self, record: Record) -> Iterator[tuple[int, list[TableCell]]]:
        """All rows of a record, each with the number of its table in `layouts`."""
        main = self._main
        fields = {} if record.fields is None else record.fields
        error = None if record.error is None else f"{record.error.what} ({record.error.why})"
        yield (
            0,
            [
                TableCell(record.file),
                TableCell(record.page),
                *_cells(main, fields, ""),
                TableCell(", ".join(record.review) or None),
                TableCell("; ".join(record.failed_checks) or None),
                TableCell(error),
            ],
        )
        yield from self._list_rows(main, fields, "", [TableCell(record.file), TableCell(record.page)])

    def _list_rows(
        self, table: _Table, row: Any, path: str, before: list[TableCell]
    ) -> Iterator[tuple[int, list[TableCell]]]:
        for keys, inner in table.lists:
            items, inner_path = _at(row, keys), _joined(path, keys)
            if not isinstance(items, list):
                continue
            for index, item in enumerate(items):
                item_path = f"{inner_path}[{index}]"
                start = [*before, TableCell(index)]
                yield inner.number, [*start, *_cells(inner, item, item_path)]
                yield from self._list_rows(inner, item, item_path, start)

    def _read_object(
        self, schema: JSONSchema, keys: tuple[str, ...], table: _Table, name: str, seen: tuple[str, ...]
    ) -> None:
        properties, has_rest = _properties(schema, self._root)
        for key, one in properties.items():
            self._read(one, (*keys, key), table, named(name, key), seen)
        if has_rest:
            rest = f"{name}.{_REST}" if name else _REST
            self._add(table, TableColumn(rest, keys, "", _step(keys), frozenset(properties)))

    def _read(
        self, schema: Any, keys: tuple[str, ...], table: _Table, name: str, seen: tuple[str, ...]
    ) -> None:
        references = _references(schema)
        alternatives = _flat(schema, self._root)
        kinds = {_kind(one) for one in alternatives}
        if set(references) & set(seen) or len(keys) > _MOST_DEPTH:
            kinds = {"leaf"}  # it contains itself: the inner one is a cell
        seen = (*seen, *references)
        if kinds == {"object"}:
            self._read_object({"anyOf": alternatives}, keys, table, name, seen)
        elif kinds == {"list"}:
            outer = (*table.outer, table.name) if table.name else ()
            list_name = name or _ITEM  # of a list in a list
            inner = _Table(f"{table.name}.{list_name}" if table.name else list_name, outer)
            table.lists.append((keys, inner))
            items = [one["items"] for one in alternatives if isinstance(one.get("items"), dict)]
            if len(items) == len(alternatives):
                self._read({"anyOf": items}, (), inner, "", seen)
            else:
                self._add(inner, TableColumn(_ITEM, ()))  # of items that the schema leaves open
        else:
            forms = {str(one.get("format", "")) for one in alternatives}
            form = forms.pop() if len(forms) == 1 else ""
            self._add(table, TableColumn(name or _ITEM, keys, form, _step(keys)))

    def _add(self, table: _Table, column: TableColumn) -> None:
        table.columns.append(column)
        self._num_columns += 1
        if self._num_columns > MOST_COLUMNS:
            raise UsageError(
                f"a table with more than {MOST_COLUMNS} columns",
                "each field of the schema is one, and a definition that is used twice is counted twice",
                "a smaller schema, or no table: the records themselves have no such limit",
            )


def _all_tables(table: _Table) -> Iterator[_Table]:
    yield table
    for _, inner in table.lists:
        yield from _all_tables(inner)


def _header(table: _Table) -> tuple[str, ...]:
    """Names of the columns. Where a field has the name of a column of ours, ours gets an underscore."""
    fields = tuple(column.name for column in table.columns)
    taken = set(fields)

    def free(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    before = [free("file"), free("page")]
    if not table.name:
        return (*before, *fields, free("review"), free("failed_checks"), free("error"))
    before += [free(f"{name}.index") for name in table.outer]
    return (*before, free("index"), *fields)


def _cells(table: _Table, row: Any, path: str) -> Iterator[TableCell]:
    for column in table.columns:
        value = _at(row, column.keys)
        if column.known is not None:
            names = value if _is_map(value) else {}
            value = {name: one for name, one in names.items() if name not in column.known} or None
        place = f"{path}{column.step}" if path else column.step.removeprefix(".")
        yield TableCell(_scalar(value), place, column.form)


def _step(keys: Sequence[str]) -> str:
    """What the path of a value has after that of the object that `keys` lead from."""
    return _joined("x", keys)[1:]


def _scalar(value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _at(row: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        if not _is_map(row):
            return None
        row = row.get(key)
    return row


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _joined(path: str, keys: Sequence[str]) -> str:
    for key in keys:
        path = named(path, key)
    return path


def _flat(schema: Any, root: JSONSchema, seen: set[str] | None = None) -> list[dict[str, Any]]:
    """What a schema stands for: without references and alternatives, and without null among several.

    seen: references that were followed; a second time they would add nothing.
    """
    seen = set() if seen is None else seen
    if not isinstance(schema, Mapping):
        return [{}]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if reference in seen:
            return []
        seen.add(reference)
        schema = resolved(schema, root)
    inside = [one for key in _ALTERNATIVES for one in schema.get(key, ())]
    if not inside:
        return [dict(schema)]
    own = {key: one for key, one in schema.items() if key not in _ALTERNATIVES}
    found = [flat for one in inside for flat in _flat(one, root, seen)]
    if own.keys() & {"properties", "items", "format"}:
        found.append(own)
    return [one for one in found if one.get("type") != "null"] or [{}]


def _references(schema: Any) -> tuple[str, ...]:
    """Of a schema and its alternatives."""
    if not isinstance(schema, Mapping):
        return ()
    inside = [one for key in _ALTERNATIVES for one in schema.get(key, ())]
    own = (schema["$ref"],) if isinstance(schema.get("$ref"), str) else ()
    return (*own, *(reference for one in inside for reference in _references(one)))


def _kind(schema: JSONSchema) -> str:
    kinds = schema.get("type", [])
    kinds = {*kinds} - {"null"} if isinstance(kinds, list) else {kinds}
    if "enum" in schema or "const" in schema:
        return "leaf"
    if kinds == {"array"} or (not kinds and ("items" in schema or "prefixItems" in schema)):
        return "list"
    if "properties" in schema and kinds <= {"object"}:
        return "object"
    return "leaf"


def _properties(schema: JSONSchema, root: JSONSchema) -> tuple[dict[str, Any], bool]:
    """The properties of all alternatives, and whether others are allowed as well."""
    properties: dict[str, list[Any]] = {}
    has_rest = False
    for one in _flat(schema, root):
        has_rest = has_rest or bool(one.get("additionalProperties", "properties" not in one))
        has_rest = has_rest or "patternProperties" in one
        for name, inner in one.get("properties", {}).items():
            properties.setdefault(name, []).append(inner)
    merged = {name: found[0] if len(found) == 1 else {"anyOf": found} for name, found in properties.items()}
    return merged, has_rest
