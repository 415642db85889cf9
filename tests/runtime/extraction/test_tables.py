"""Tables of records, read again by csv and openpyxl: every value in its place, none of them a formula."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openpyxl.utils.escape import unescape

from ernie_local.errors import ErnieLocalError, InputUnreadable, UsageError
from ernie_local.extraction import xlsx_tables
from ernie_local.extraction.csv_tables import csv_paths, write_csv
from ernie_local.extraction.paths import leaves
from ernie_local.extraction.record import Record, RecordError
from ernie_local.extraction.table_layout import RecordTables
from ernie_local.extraction.xlsx_tables import write_xlsx

TEXT = {"type": "string"}
NUMBER = {"type": "number"}


def an_object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def a_list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


INVOICE = an_object(
    vendor=TEXT,
    date={"type": "string", "format": "date"},
    buyer=an_object(name=TEXT, city={"anyOf": [TEXT, {"type": "null"}]}),
    lines=a_list(an_object(item=TEXT, price=NUMBER, taxes=a_list(an_object(rate=NUMBER)))),
    tags=a_list(TEXT),
    total=NUMBER,
)
FIELDS = {
    "vendor": 'Kim, "Söhne"\nGmbH',
    "date": "2026-11-29",
    "buyer": {"name": "Özil", "city": None},
    "lines": [
        {"item": "nuts", "price": 1e-7, "taxes": [{"rate": 7}, {"rate": 19}]},
        {"item": "bolts", "price": -1e22, "taxes": []},
    ],
    "tags": ["paid", "合计"],
    "total": 84.84,
}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def read_xlsx(path: Path) -> dict[str, list[dict[str, Any]]]:
    book = openpyxl.load_workbook(path)
    found = {}
    for sheet in book.worksheets:
        header, *rows = sheet.iter_rows(values_only=True)
        found[sheet.title] = [dict(zip(map(str, header), row, strict=True)) for row in rows]
    return found


def test_an_invoice_as_csv(tmp_path: Path) -> None:
    record = Record("in/a.pdf", 2, FIELDS, review=("buyer.name", "total"), failed_checks=("total == 1",))
    written = write_csv(tmp_path / "out.csv", [record], INVOICE)
    names = [path.name for path in written.paths]
    assert names == ["out.csv", "out.lines.csv", "out.lines.taxes.csv", "out.tags.csv"]
    assert (written.num_rows, written.notes) == ((1, 2, 2, 2), ())
    main, lines, taxes, tags = map(read_csv, written.paths)
    assert main == [
        {
            "file": "in/a.pdf",
            "page": "2",
            "vendor": 'Kim, "Söhne"\nGmbH',
            "date": "2026-11-29",
            "buyer.name": "Özil",
            "buyer.city": "",
            "total": "84.84",
            "review": "buyer.name, total",
            "failed_checks": "total == 1",
            "error": "",
        }
    ]
    where = {"file": "in/a.pdf", "page": "2"}
    assert lines == [
        where | {"index": "0", "item": "nuts", "price": "0.0000001"},
        where | {"index": "1", "item": "bolts", "price": "-10000000000000000000000"},
    ]
    assert taxes == [
        where | {"lines.index": "0", "index": "0", "rate": "7"},
        where | {"lines.index": "0", "index": "1", "rate": "19"},
    ]
    assert tags == [where | {"index": "0", "value": "paid"}, where | {"index": "1", "value": "合计"}]
    assert written.paths[0].read_bytes().startswith(b"\xef\xbb\xbffile,page,vendor,")
    assert b"\r\n" in written.paths[0].read_bytes()


def test_an_invoice_as_xlsx(tmp_path: Path) -> None:
    record = Record("a.png", None, FIELDS, review=("buyer.name", "lines[1].price"))
    written = write_xlsx(tmp_path / "out.xlsx", [record], INVOICE)
    assert (written.num_rows, written.notes) == ((1, 2, 2, 2), ())
    sheets = read_xlsx(tmp_path / "out.xlsx")
    assert list(sheets) == ["documents", "lines", "lines.taxes", "tags"]
    (main,) = sheets["documents"]
    assert main["date"] == datetime(2026, 11, 29)  # noqa: DTZ001  as Excel has it
    assert (main["total"], main["vendor"], main["page"]) == (84.84, FIELDS["vendor"], None)
    assert sheets["lines"][1] == {"file": "a.png", "page": None, "index": 1, "item": "bolts", "price": -1e22}
    book = openpyxl.load_workbook(tmp_path / "out.xlsx")
    coloured = {
        (sheet.title, cell.coordinate): cell.fill.fgColor.rgb
        for sheet in book.worksheets
        for row in sheet.iter_rows(min_row=2)
        for cell in row
        if cell.fill.fill_type
    }
    assert coloured == {("documents", "E2"): "FFFFF2B3", ("lines", "E3"): "FFFFF2B3"}


def test_errors_and_failed_checks_are_seen(tmp_path: Path) -> None:
    error = RecordError("InputUnreadable", "a.png: 0 bytes", "it is empty", "copy it again")
    records = [Record("a.png", error=error), Record("b.png", None, FIELDS, failed_checks=("total > 0",))]
    write_csv(tmp_path / "out.csv", records, INVOICE)
    first, second = read_csv(tmp_path / "out.csv")
    assert (first["error"], first["total"]) == ("a.png: 0 bytes (it is empty)", "")
    assert (second["error"], second["failed_checks"]) == ("", "total > 0")
    write_xlsx(tmp_path / "out.xlsx", records, INVOICE)
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx")["documents"]
    assert [sheet.cell(row, 1).fill.fgColor.rgb for row in (2, 3)] == ["FFF9C6BF"] * 2


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1+1", "=", "-"]
HARMLESS = ["-5", "+49", "-5.20", "-1,234.50", " =1", "a=1", "", "'=1", "1-1"]


def test_no_text_is_a_formula(tmp_path: Path) -> None:
    schema = an_object(**{"=name": TEXT})
    records = [Record(f"{text}.png", None, {"=name": text}) for text in FORMULAS + HARMLESS]
    written = write_csv(tmp_path / "out.csv", records, schema)
    rows = read_csv(tmp_path / "out.csv")
    (column,) = [name for name in rows[0] if "name" in name]
    assert [row[column] for row in rows] == [*(f"'{text}" for text in FORMULAS), *HARMLESS]
    assert all(
        row["file"].startswith("'") == row["file"][1:].startswith(tuple("=+-@\t\r\uff1d"))
        for row in rows[:-9]
    )
    assert written.notes[0].endswith(
        "texts that a spreadsheet would run as formulas have an apostrophe in front"
    )
    write_xlsx(tmp_path / "out.xlsx", records, schema)
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx")["documents"]
    for row, text in enumerate(FORMULAS + HARMLESS, start=2):
        cell = sheet.cell(row, 3)
        assert cell.data_type != "f"
        assert unescape(cell.value or "") == text
        assert cell.hyperlink is None


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(-1e9, 1e9)
    | st.text("ab=-é\n", max_size=4)
)
SCHEMAS = st.recursive(
    st.just("leaf"),
    lambda inner: (
        st.dictionaries(st.sampled_from("abcdef"), inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=1)
    ),
    max_leaves=8,
)


def schema_of(shape: Any) -> dict[str, Any]:
    if isinstance(shape, dict):
        return an_object(**{name: schema_of(one) for name, one in shape.items()})
    if isinstance(shape, list):
        return a_list(schema_of(shape[0]))
    return {"type": ["string", "number", "boolean", "null"]}


def values_of(shape: Any) -> st.SearchStrategy[Any]:
    if isinstance(shape, dict):
        return st.fixed_dictionaries({name: values_of(one) for name, one in shape.items()})
    return st.lists(values_of(shape[0]), max_size=3) if isinstance(shape, list) else SCALARS


def cells_by_path(path: Path) -> Iterator[tuple[str, str, str]]:
    """(file, path, text) of each cell that is not empty, from the names of files and columns alone."""
    for one in sorted(path.parent.glob("out*.csv")):
        name = one.name.removeprefix("out").removesuffix(".csv").removeprefix(".")
        for row in read_csv(one):
            indices = [
                value for column, value in row.items() if column == "index" or column.endswith(".index")
            ]
            outer = [column.removesuffix(".index") for column in row if column.endswith(".index")]
            start, place = 0, ""
            for table, index in zip([*outer, *([name] if name else [])], indices, strict=True):
                place += f"{table[start:].replace('.value', '')}[{index}]"
                start = len(table)
            for column, text in row.items():
                if column in ("file", "page", "review", "failed_checks", "error") or column.endswith("index"):
                    continue
                if text:
                    step = "" if column == "value" and name else f".{column}" if place else column
                    yield row["file"], f"{place}{step}", text


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from("abcdef"), SCHEMAS, min_size=1, max_size=4), st.data())
def test_every_value_is_in_the_cell_that_its_path_names(
    tmp_path: Path, shape: dict[str, Any], data: st.DataObject
) -> None:
    for old in tmp_path.glob("out*"):
        old.unlink()
    schema = schema_of(shape)
    records = [Record(f"{number}.png", None, data.draw(values_of(shape))) for number in range(2)]
    written = write_csv(tmp_path / "out.csv", records, schema)
    assert list(written.paths) == csv_paths(tmp_path / "out.csv", schema)
    found = {(file, path): text for file, path, text in cells_by_path(tmp_path / "out.csv")}
    expected = {
        (record.file, path): value
        for record in records
        for path, value in leaves(record.fields)
        if value not in (None, "", [], {})
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, str):
            assert found[key].removeprefix("'") == value
        elif isinstance(value, bool):
            assert found[key] == str(value).lower()
        else:
            assert Decimal(found[key]) == Decimal(repr(value))
            assert "e" not in found[key]


def test_columns_come_from_the_schema_whatever_was_found(tmp_path: Path) -> None:
    node = an_object(name=TEXT, children=a_list({"$ref": "#/$defs/Node"}))
    schema = {
        **an_object(
            page={"type": "integer"},
            error=TEXT,
            tree={"$ref": "#/$defs/Node"},
            party={"anyOf": [an_object(person=TEXT), an_object(firm=TEXT, person=TEXT), {"type": "null"}]},
            free={"type": "object"},
            more={**an_object(x=NUMBER), "additionalProperties": NUMBER},
            mixed={"anyOf": [a_list(TEXT), TEXT]},
            pair={"type": "array", "prefixItems": [TEXT, NUMBER]},
        ),
        "$defs": {"Node": node},
    }
    tables = RecordTables(schema)
    assert {layout.name: layout.header for layout in tables.layouts} == {
        "": (
            *("file", "page_", "page", "error", "tree.name", "party.person", "party.firm", "free", "more.x"),
            *("more.*", "mixed", "review", "failed_checks", "error_"),
        ),
        "tree.children": ("file", "page", "index", "value"),
        "pair": ("file", "page", "index", "value"),
    }
    fields = {
        "page": 7,
        "error": "none",
        "tree": {"name": "a", "children": [{"name": "b", "children": []}]},
        "party": {"firm": "F"},
        "free": {"k": [1]},
        "more": {"x": 1, "y": 2},
        "mixed": ["m"],
        "pair": ["p", 2],
    }
    written = write_csv(tmp_path / "o.csv", [Record("a", 1, fields), Record("b")], schema)
    main = read_csv(tmp_path / "o.csv")
    assert main[0] | {"free": '{"k": [1]}', "more.*": '{"y": 2}', "mixed": '["m"]', "page": "7"} == main[0]
    assert set(main[1].values()) == {"b", ""}
    assert [row["value"] for row in read_csv(written.paths[1])] == ['{"name": "b", "children": []}']
    assert [row["value"] for row in read_csv(written.paths[2])] == ["p", "2"]


def test_names_of_files_and_sheets_are_safe_and_differ(tmp_path: Path) -> None:
    long = "x" * 100
    names = ["../up", "a/b", "a:b", "A:B", "history", long, f"{long}y", "'", "documents", "", "ok"]
    schema = an_object(**{name: a_list(TEXT) for name in names})
    fields = {name: [name] for name in names}
    paths = csv_paths(tmp_path / "out.csv", schema)
    assert len(set(paths)) == len(names) + 1
    assert {path.parent for path in paths} == {tmp_path}
    write_csv(tmp_path / "out.csv", [Record("a", None, fields)], schema)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    write_xlsx(tmp_path / "out.xlsx", [Record("a", None, fields)], schema)
    sheets = read_xlsx(tmp_path / "out.xlsx")
    assert all(len(title) <= 31 for title in sheets)
    assert [rows[0]["value"] or "" for rows in list(sheets.values())[1:]] == names


def test_what_excel_cannot_hold(tmp_path: Path) -> None:
    stamp = {"type": "string", "format": "date-time"}
    schema = an_object(text=TEXT, day={"type": "string", "format": "date"}, moment=stamp, number=NUMBER)
    cases = [
        ("x" * 40_000, "1899-12-31", "2026-01-02T03:04:05", 2**53 + 1),
        ("a\x00b\x1b\ud800", "no date", "2026-01-02T03:04:05+01:00", 1e308),
        ("http://a.example", "1969-07-20", "", -(2**53)),
    ]
    records = [
        Record(f"{n}\udcff", None, dict(zip(("text", "day", "moment", "number"), case, strict=True)))
        for n, case in enumerate(cases)
    ]
    written = write_xlsx(tmp_path / "out.xlsx", records, schema)
    assert written.notes == ("1 texts were cut to the 32,767 characters that a cell of Excel takes",)
    rows = read_xlsx(tmp_path / "out.xlsx")["documents"]
    assert len(rows[0]["text"]) == 32_767
    assert (rows[0]["day"], rows[0]["number"]) == ("1899-12-31", str(2**53 + 1))
    assert rows[0]["moment"] == datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001
    assert (rows[1]["day"], rows[1]["moment"]) == ("no date", cases[1][2])
    assert rows[1]["number"] == "1e+308"
    assert "\\ud800" in rows[1]["text"]
    assert rows[1]["file"] == "1\\udcff"
    assert rows[2]["day"] == datetime.combine(date(1969, 7, 20), datetime.min.time())
    assert (rows[2]["text"], rows[2]["number"]) == ("http://a.example", -(2**53))
    write_csv(tmp_path / "out.csv", records, schema)
    assert [row["file"] for row in read_csv(tmp_path / "out.csv")] == ["0\\udcff", "1\\udcff", "2\\udcff"]


def test_a_full_sheet_goes_on_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx_tables, "_MOST_ROWS", 4)
    records = [Record(f"{n}.png", None, {"tags": ["a", "b"]}) for n in range(5)]
    written = write_xlsx(tmp_path / "out.xlsx", records, an_object(tags=a_list(TEXT)))
    assert written.num_rows == (5, 10)
    assert written.notes == ("6 sheets, as one has at most 4 rows",)
    sheets = read_xlsx(tmp_path / "out.xlsx")
    assert [len(rows) for rows in sheets.values()] == [3, 3, 3, 2, 3, 1]
    files = [row["file"] for title, rows in sheets.items() if title.startswith("documents") for row in rows]
    assert files == [f"{n}.png" for n in range(5)]


def test_schemas_that_would_grow_without_end() -> None:
    again = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B0"}]}
    chain = {f"B{n}": {"anyOf": [{"$ref": f"#/$defs/B{n + 1}"}] * 2} for n in range(40)}
    schema = {**an_object(a={"$ref": "#/$defs/A"}), "$defs": {"A": again, **chain, "B40": NUMBER}}
    assert RecordTables(schema).layouts[0].header[2:3] == ("a",)
    tree: dict[str, Any] = {
        f"N{n}": an_object(a={"$ref": f"#/$defs/N{n + 1}"}, b={"$ref": f"#/$defs/N{n + 1}"})
        for n in range(40)
    }
    schema = {**an_object(a={"$ref": "#/$defs/N0"}), "$defs": {**tree, "N40": NUMBER}}
    with pytest.raises(UsageError, match=r"a table with more than 16000 columns"):
        RecordTables(schema)


@pytest.mark.parametrize("write", [write_csv, write_xlsx])
def test_a_run_that_fails_leaves_what_was_there(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def broken() -> Iterator[Record]:
        yield Record("a", None, FIELDS)
        raise InputUnreadable("line 2", "half", "restore")

    with pytest.raises(InputUnreadable):
        write(path, broken(), INVOICE)
    with pytest.raises(ErnieLocalError, match="cannot write a table"):
        write(tmp_path / "no" / "out.csv", [], INVOICE)
    assert path.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [path, temporary]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("write", [write_csv, write_xlsx])
def test_a_full_disk_is_an_error_with_three_lines(tmp_path: Path, write: Any) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "out.csv"
    path.write_text("before")
    records = (Record(f"{n}.png", None, FIELDS) for n in range(3000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(ErnieLocalError, match=r"cannot write a table to .*\nFile too large"):
            write(path, records, INVOICE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_rights_of_a_table_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_csv(tmp_path / "out.csv", [], INVOICE)
    assert (tmp_path / "out.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert re.fullmatch(r"[^\n]*\r\n", (tmp_path / "out.tags.csv").read_bytes().decode("utf-8-sig"))
