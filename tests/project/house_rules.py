"""Checks the shape of the code: lengths, names that two modules define, and what is written more than once.

Prints the size of each package. Fails on a file over 600 lines (over 400 in the product), a function over 60
or a class over 300; on more product files or lines than agreed; on a public name with two owners; on six
names in a row that stand in more than two places; and on twelve equal lines.
A function or class that has a reason to be longer carries `# long: the reason` on its first line.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("ernie_local", "quant", "calibration", "cli")
FOLDERS = (*PRODUCT, "tests", "csrc", "benchmarks", "examples", "docs")
SUFFIXES = (".py", ".pyi", ".cpp", ".hpp", ".cu")
MAX_PRODUCT_FILES, MAX_PRODUCT_LINES = 500, 76_000
MAX_FILE_LINES, MAX_PRODUCT_FILE_LINES = 600, 400
MAX_FUNCTION_LINES, MAX_CLASS_LINES = 60, 300
LIST_LENGTH, LIST_PLACES = 6, 2
EQUAL_LINES = 12

Texts = Mapping[Path, str]
Trees = Mapping[Path, ast.Module]


def source_files(root: Path) -> Texts:
    """All source files below the folders of `root`, sorted, by their path from there."""
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in sorted(found)}


def long_files(texts: Texts) -> Iterator[str]:
    """One message for each file that is too long."""
    for path, text in texts.items():
        limit = MAX_PRODUCT_FILE_LINES if _is_product(path) else MAX_FILE_LINES
        if (num_lines := len(text.splitlines())) > limit:
            yield f"{path}: {num_lines} lines, the limit is {limit}: split it at a seam"


def long_definitions(texts: Texts, trees: Trees) -> Iterator[str]:
    """One message for each function and class that is over its limit and gives no reason."""
    for path, tree in trees.items():
        lines = texts[path].splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                limit = MAX_FUNCTION_LINES
            elif isinstance(node, ast.ClassDef):
                limit = MAX_CLASS_LINES
            else:
                continue
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > limit and "# long: " not in lines[node.lineno - 1]:
                yield f"{path}:{node.lineno}: {node.name} has {num_lines} lines, the limit is {limit}"


def large_product(texts: Texts) -> Iterator[str]:
    """A message for too many files, and one for too many lines."""
    num_lines = sum(len(text.splitlines()) for text in texts.values())
    if len(texts) > MAX_PRODUCT_FILES:
        yield f"{len(texts)} product files, the limit is {MAX_PRODUCT_FILES}"
    if num_lines > MAX_PRODUCT_LINES:
        yield f"{num_lines} product lines, the limit is {MAX_PRODUCT_LINES}"


def repeated_names(trees: Trees) -> Iterator[str]:
    """Public classes, functions and type aliases that two modules define. Scripts may each have a `main`."""
    owners: dict[str, list[Path]] = defaultdict(list)
    for path, tree in trees.items():
        for name in {name for node in tree.body for name in _public_names(node)} - {"main"}:
            owners[name].append(path)
    for name, paths in sorted(owners.items()):
        if len(paths) > 1:
            yield f"{name} is defined in {' and '.join(map(str, paths))}: give one another name"


def repeated_lists(trees: Trees) -> Iterator[str]:
    """Six names in a row that stand in more than two places: parameters, arguments, fields, tuples."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            names = _names_in_a_row(node)
            runs = {names[start : start + LIST_LENGTH] for start in range(len(names) - LIST_LENGTH + 1)}
            for run in runs:
                if all(run) and len(set(run)) == LIST_LENGTH:
                    places[run].append(f"{path}:{getattr(node, 'lineno', 0)}")
    by_places = {tuple(where): run for run, where in places.items() if len(where) > LIST_PLACES}
    for where, run in sorted(by_places.items()):
        yield f"{', '.join(run)} stand together in {', '.join(where)}: make them one value"


def equal_lines(texts: Texts) -> Iterator[str]:
    """Twelve equal lines of code in two places; imports, comments and blank lines do not count."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, text in texts.items():
        stripped = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        lines = [pair for pair in stripped if pair[1] and not pair[1].startswith(("#", "import ", "from "))]
        for start in range(len(lines) - EQUAL_LINES + 1):
            window = lines[start : start + EQUAL_LINES]
            places[tuple(line for _, line in window)].append(f"{path}:{window[0][0]}")
    for where in sorted(places.values()):
        if len(where) > 1:
            yield f"{EQUAL_LINES} equal lines at {' and '.join(where)}: let one piece of code serve both"


def _is_product(path: Path) -> bool:
    return path.parts[0] in PRODUCT and path.suffix == ".py"


def _public_names(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
        yield node.name
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id[0].isupper() and not target.id.isupper():
                yield target.id


def _names_in_a_row(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.FunctionDef):
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return tuple(each.arg for each in parameters if each.arg not in ("self", "cls"))
    if isinstance(node, ast.Call):
        return (*map(_passed, node.args), *(keyword.arg or "" for keyword in node.keywords))
    if isinstance(node, ast.ClassDef):
        fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
        return tuple(field.id for field in fields if isinstance(field, ast.Name))
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(map(_passed, node.elts))
    return ()


def _passed(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def find_faults(root: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """(files, lines) of every package, and what is over a limit, in words."""
    texts = source_files(root)
    trees = {path: ast.parse(text, str(path)) for path, text in texts.items() if path.suffix == ".py"}
    product = {path: text for path, text in texts.items() if _is_product(path)}
    product_trees = {path: trees[path] for path in product}
    sizes: dict[str, tuple[int, int]] = {}
    for path, text in texts.items():
        package = "/".join(path.parts[:2]) if _is_product(path) and len(path.parts) > 2 else path.parts[0]
        files, lines = sizes.get(package, (0, 0))
        sizes[package] = (files + 1, lines + len(text.splitlines()))
    faults = [
        *long_files(texts),
        *long_definitions(texts, trees),
        *large_product(product),
        *repeated_names(product_trees),
        *repeated_lists(product_trees),
        *equal_lines(product),
    ]
    lengths = [len(text.splitlines()) for text in product.values()]
    sizes["all of the product"] = (len(lengths), sum(lengths))
    sizes["its median file"] = (1, int(median(lengths or [0])))
    return sizes, faults


def main() -> int:
    """Print the sizes and the faults; 1 if there is a fault."""
    sizes, faults = find_faults(ROOT)
    for package, (files, lines) in sizes.items():
        print(f"{package:32}{files:5} files{lines:8} lines")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
