// Shows a JSON value as tables.

import { element } from "./dom.js";

/** The view of a JSON text; null while it is not whole. */
export function jsonView(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  return valueView(value);
}

/** Lists of objects are tables with a column for each key, other objects and lists have a row for each. */
export function valueView(value) {
  if (value === null || value === undefined) return element("span", "none", "none");
  if (typeof value !== "object") return element("span", typeof value, String(value));
  const isList = Array.isArray(value);
  if (isList && !value.length) return element("span", "none", "an empty list");
  if (isList && value.every((one) => typeof one === "number")) return element("span", "", `[${value.join(", ")}]`);
  const table = element("table");
  const body = element("tbody");
  if (isList && value.every((one) => one && typeof one === "object" && !Array.isArray(one))) {
    const columns = [...new Set(value.flatMap((row) => Object.keys(row)))];
    const head = element("thead");
    head.append(rowOf(columns.map((name) => headCell(name, "col"))));
    table.append(head);
    body.append(...value.map((row) => rowOf(columns.map((name) => cellOf(row[name], true)))));
  } else {
    const entries = isList ? value.map((one, index) => [String(index + 1), one]) : Object.entries(value);
    if (!entries.length) return element("span", "none", "an empty object");
    body.append(...entries.map(([name, one]) => rowOf([headCell(name, "row"), cellOf(one)])));
  }
  table.append(body);
  return table;
}

function headCell(text, scope) {
  const cell = element("th", "", text);
  cell.scope = scope;
  return cell;
}

/** isInColumn: beside others of its kind, where numbers are compared. */
function cellOf(value, isInColumn = false) {
  const cell = element("td", isInColumn && typeof value === "number" ? "number" : "");
  cell.append(valueView(value));
  return cell;
}

function rowOf(cells) {
  const row = element("tr");
  row.append(...cells);
  return row;
}
