"""Size and shape of the code in numbers: `make measure-house`.

What is counted, and how, is told by `ROWS`; `tests/test_house.py` holds the numbers that are
reached, so that none of them grows unnoticed.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import vpltool
from vpltool.formats.kinds import KINDS

PACKAGE = Path(vpltool.__file__).parent

ROWS: Mapping[str, str] = {
    "files": "Python files in vpltool/",
    "lines": "lines of them",
    "code": "lines with code: neither blank, nor comment, nor docstring",
    "imports": "imports, percent of the lines with code",
    "indented": "imports inside functions and blocks",
    "type_checking": "files with a TYPE_CHECKING block",
    "eager": "modules of vpltool that `cam --method dense` imports before it works",
    "any": "`Any` in annotations",
    "cycles": "groups of modules that import each other",
    "kind_folders": "files, besides formats/kinds.py, that spell the folder of a kind of file",
}
"""Name of a number to what it counts."""

_NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENCODING, tokenize.ENDMARKER}


def measure(package: Path = PACKAGE) -> dict[str, float]:
    """Count everything that `ROWS` names."""
    texts = {path: path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    code = {path: code_lines(text, trees[path]) for path, text in texts.items()}
    imports = [node for tree in trees.values() for node in ast.walk(tree)
               if isinstance(node, (ast.Import, ast.ImportFrom))]
    count = sum(map(len, code.values()))
    of_imports = sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in imports)
    return {
        "files": len(texts), "lines": sum(text.count("\n") for text in texts.values()),
        "code": count, "imports": round(100 * of_imports / count, 1),
        "indented": sum(node.col_offset > 0 for node in imports),
        "type_checking": sum("\nif TYPE_CHECKING:" in text for text in texts.values()),
        "eager": eager_modules("vpltool.stages.cam", "vpltool.methods.cams.dense"),
        "any": sum(isinstance(node, ast.Name) and node.id == "Any"
                   for tree in trees.values() for node in ast.walk(tree)),
        "cycles": len(cycles(import_graph(package, trees))),
        "kind_folders": sum(spells_folders(tree) for path, tree in trees.items()
                            if path != package / "formats/kinds.py")}


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Numbers of the lines that hold code."""
    texts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NOT_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return found - texts


def eager_modules(*names: str) -> int:
    """Number of modules of vpltool that a fresh process has after it has imported some."""
    program = (f"import sys, {', '.join(names)}; "
               "print(sum(name.split('.')[0] == 'vpltool' for name in sys.modules))")
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              check=True).stdout)


def import_graph(package: Path, trees: Mapping[Path, ast.AST]) -> dict[str, set[str]]:
    """Module to the modules of the package that it imports anywhere, for types, too.

    The package's own `__init__`, which gives the version, does not count.
    """
    names = {path: ".".join(path.relative_to(package.parent).with_suffix("").parts)
             .removesuffix(".__init__") for path in trees}
    known = set(names.values())
    return {names[path]: {target for name in imported(tree) for target in [
        name if name in known else name.rpartition(".")[0]]
        if target in known - {package.name, names[path]}} for path, tree in trees.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports; of `from a import b`, `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the sets of several modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        found, waiting = set[str](), [start]
        while waiting:
            for target in graph[waiting.pop()] - found:
                found.add(target)
                waiting.append(target)
        reached[start] = found
    groups = {frozenset(other for other in reached[name] if name in reached[other])
              for name in graph if name in reached[name]}
    return [set(group) for group in groups]


def spells_folders(tree: ast.AST) -> bool:
    """Whether a path or a text of a module begins with the folder of a kind."""
    def begins(node: ast.AST) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return isinstance(node.right, ast.Constant) and node.right.value in KINDS
        return (isinstance(node, ast.Constant) and isinstance(node.value, str)
                and "\n" not in node.value and "/" in node.value
                and node.value.partition("/")[0] in KINDS)

    return any(map(begins, ast.walk(tree)))


if __name__ == "__main__":
    print("| what | here |\n| --- | ---: |")
    for key, value in measure().items():
        print(f"| {ROWS[key]} | {value:,} |")
