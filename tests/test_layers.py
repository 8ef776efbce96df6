"""The layers, read from the source: imports go down only, and nothing heavy before it is used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vpltool
from vpltool import options

PACKAGE = Path(vpltool.__file__).parent
HEAVY_ROOMS = ("core", "clip", "pictures", "demo")
HEAVY = ("torch", "torchvision", "numpy", "PIL", "open_clip", "safetensors", "tqdm")


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports; TYPE_CHECKING blocks are left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


MAY_IMPORT = {
    "core": {"core", "errors"},
    "clip": {"clip", "core", "errors"},
    "pictures": {"pictures", "core", "errors"},
    "parallel": {"parallel", "core", "formats", "errors"},
    "demo": {"demo", "core", "clip"},
    "formats": {"formats", "errors", "console", "__version__"},
    "datasets": {"datasets", "formats", "errors"},
    "presets": {"presets", "formats", "errors"},
    "stages": {"stages", "core", "clip", "pictures", "parallel", "demo", "formats", "datasets", "presets", "options", "console",
                 "stage", "errors", "__version__"},
}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_go_down_only(layer: str) -> None:
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "vpltool" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[layer], f"{path.name} imports {name}"
            if layer not in ("stages", "presets"):
                assert parts[0] not in ("typer", "click"), f"{path.name} imports {name}"


def test_heavy_modules_are_imported_where_they_are_used() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name in HEAVY_ROOMS or path.stem in ("device", "memory", "photos"):
            continue
        for name in imports_of(path, top_level=True):
            assert name.split(".")[0] not in HEAVY, f"{path.name} imports {name}"
            assert not name.startswith(tuple(f"vpltool.{room}" for room in HEAVY_ROOMS)), (
                f"{path.name} imports {name}")


def test_core_does_not_print() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
        assert not calls, path.name


def test_only_the_catalogue_imports_open_clip() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py")
             if any(name.split(".")[0] == "open_clip" for name in imports_of(path))}
    assert users == {"catalogue.py"}


def test_only_eval_and_show_read_true_masks() -> None:
    """`photo.mask` is spelled in no other command."""
    users = set()
    for path in (PACKAGE / "stages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "photo.mask":
                users.add(path.stem)
    # prepare names masks and warns if there are none; it opens none (test_weak_supervision).
    assert users <= {"_truth", "eval", "show", "inspect", "prepare"}
    assert "_truth" in users


def test_only_eval_and_show_import_what_reads_true_masks() -> None:
    users = {path.stem for path in PACKAGE.rglob("*.py")
             if "vpltool.stages._truth" in imports_of(path)}
    assert users == {"eval", "show"}


def test_only_prepare_imports_what_makes_true_masks() -> None:
    """COCO's outlines are read to paint true masks, and for nothing else."""
    users = {path.stem for path in PACKAGE.rglob("*.py")
             if "vpltool.stages._instances" in imports_of(path)}
    assert users == {"prepare"}


def test_shared_options_have_one_spelling() -> None:
    """An option of options.py is taken from there, not spelled again with another meaning."""
    shared = {"--device", "--precision", "--workers", "--seed", "--overwrite", "--quiet", "--out",
              "--split"}
    assert {name.removeprefix("--").title() for name in shared} <= set(dir(options))
    for path in (PACKAGE / "stages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in shared:
                raise AssertionError(f"{path.name}:{node.lineno} spells {node.value} itself")
