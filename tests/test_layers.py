"""The layers, read from the source: imports go down only, and nothing heavy before it is used."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
from pathlib import Path

import pytest

import vpltool
from vpltool import options
from vpltool.shell import all_settings
from vpltool.stages import find_stages

PACKAGE = Path(vpltool.__file__).parent
HEAVY_ROOMS = ("clip", "demo")
LAZY_ROOMS = {f"vpltool.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")
              if "modules_of(__name__)" in path.read_text()}
HEAVY = ("torch", "torchvision", "numpy", "PIL", "open_clip", "safetensors", "tqdm")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The source of a file; read once for all tests."""
    return ast.parse(path.read_text())


@functools.cache
def imports_of(path: Path, *, top_level: bool = False) -> frozenset[str]:
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
            if top_level and node.module in LAZY_ROOMS:
                return
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(path))
    return frozenset(found)


LOWEST = {"errors", "console", "json_text", "file_hashes", "names", "tables", "lazy", "process",
          "__version__"}
FILES = LOWEST | {"formats", "datasets", "settings", "options"}
WORK = {"core", "clip", "pictures", "parallel", "demo"}
ENGINE = FILES | WORK | {"methods", "engine"}
STAGES = ENGINE | {"stages", "presets"}
RUNS = STAGES | {"command_help", "run", "shell", "preset", "provenance", "state", "recipes",
                 "command", "segmenter"}

MAY_IMPORT = {
    "console": set(),
    "json_text": set(),
    "file_hashes": {"console", "json_text"},
    "names": set(),
    "tables": set(),
    "lazy": set(),
    "process": set(),
    "core": {"core", "errors", "lazy", "process"},
    "clip": {"clip", "core", "errors", "lazy", "json_text", "file_hashes", "__version__"},
    "pictures": {"pictures", "core", "errors", "lazy"},
    "parallel": {"parallel", "core", "formats", "errors", "lazy", "console", "process"},
    "demo": {"demo"},
    "settings": LOWEST,
    "options": {"settings"},
    "formats": LOWEST | {"formats"},
    "datasets": {"datasets", "formats", "console", "errors", "lazy", "json_text", "names"},
    "presets": {"presets", "errors"},
    "methods": FILES | WORK | {"methods", "presets"},
    "engine": ENGINE,
    "stages": STAGES,
    "run": STAGES,
    "shell": STAGES,
    "preset": STAGES | {"shell"},
    "segmenter": STAGES,
    "provenance": STAGES | {"shell"},
    "state": STAGES | {"run", "shell", "provenance"},
    "completion": {"json_text"},
    "command_help": STAGES | {"shell"},
    "command": STAGES | {"run", "shell", "preset", "completion", "command_help"},
    "next_step": STAGES | {"shell", "state"},
    "recipes": STAGES | {"recipes", "run", "shell", "preset", "command", "api", "state"},
    "papers": STAGES | {"papers", "recipes", "run", "shell", "preset", "command", "api", "state"},
    "review": RUNS | {"review", "__version__"},
    "commands": RUNS | {"commands", "review", "next_step"},
    "api": STAGES | {"run", "shell", "preset"},
    "cli": RUNS | {"next_step", "completion"},
    "reference": RUNS | {"commands", "review", "next_step"},
}
"""What each folder, or file, of the package may import; nothing imports what stands above it."""


def test_every_part_has_its_layer() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    others = {"__init__", "__main__", "__pycache__", "errors", "py"}
    assert parts - others == set(MAY_IMPORT)


def test_the_docs_list_every_part_above_what_it_may_import() -> None:
    text = (PACKAGE.parent / "docs/design.md").read_text("utf-8").partition("## Layers")[2]
    rows = [re.split(r"\s{2,}", row)[0] for row in re.findall(r"^    (.+)$", text, re.M)]
    row_of = {name: number for number, row in enumerate(rows) for name in re.findall(r"\w+", row)}
    assert row_of.keys() == MAY_IMPORT.keys() | {"errors"}
    for layer, names in MAY_IMPORT.items():
        above = [name for name in names - {"__version__"} if row_of[name] < row_of[layer]]
        assert not above, layer


def files_of(layer: str) -> list[Path]:
    """The files of a folder, or the one file."""
    folder = PACKAGE / layer
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{layer}.py"]


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_go_down_only(layer: str) -> None:
    for path in files_of(layer):
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "vpltool" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[layer] | {"lazy"}, f"{path.name} imports {name}"
            if layer not in ("command", "cli"):
                assert parts[0] not in ("typer", "click"), f"{path.name} imports {name}"


def test_heavy_modules_are_imported_where_they_are_used() -> None:
    """`from vpltool.core import segment` imports nothing yet, since `vpltool.lazy` says so."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name in ("core", *HEAVY_ROOMS):
            continue
        for name in imports_of(path, top_level=True):
            assert name.split(".")[0] not in HEAVY, f"{path.name} imports {name}"
            assert is_light(name), f"{path.name} imports {name}, which imports torch"


@functools.cache
def is_light(module: str) -> bool:
    """Whether a module of ours imports nothing heavy, itself or by way of others."""
    path = PACKAGE.parent / (module.replace(".", "/") + ".py")
    if not path.exists() or not module.startswith("vpltool."):
        return True
    names = imports_of(path, top_level=True)
    return not any(name.split(".")[0] in HEAVY for name in names) and all(map(is_light, names))


def test_core_does_not_print() -> None:
    for path in (PACKAGE / "core").rglob("*.py"):
        calls = [node for node in ast.walk(tree_of(path))
                 if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
        assert not calls, path.name


def test_core_is_given_no_paths() -> None:
    """Besides photos, it knows the paths of the machine's name and of Numba's own cache."""
    users = {path.name for path in (PACKAGE / "core").rglob("*.py")
             if "pathlib.Path" in imports_of(path)}
    assert users == {"photos.py", "blocks.py", "crf_numba.py"}


def test_one_file_spells_the_name_of_a_manifest() -> None:
    spelled = [path.name for path in PACKAGE.rglob("*.py") if 'artifact.json"' in path.read_text()]
    assert spelled == ["manifest.py"]


def test_only_the_catalogue_imports_open_clip() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py")
             if any(name.split(".")[0] == "open_clip" for name in imports_of(path))}
    assert users == {"catalogue.py"}


def test_the_papers_can_be_taken_out() -> None:
    """Tables, figures, ceilings and the comparison: nothing but themselves imports their folder."""
    users = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")
             if any(name.startswith("vpltool.papers") for name in imports_of(path))}
    assert users == {"papers"}


def test_one_function_tells_whether_a_folder_is_a_workspace() -> None:
    spelled = [path.name for path in PACKAGE.rglob("*.py")
               if re.search(r'"workspace\.json"\)\.(exists|is_file)', path.read_text())]
    assert spelled == ["kinds.py"]


def test_few_read_true_masks() -> None:
    """`photo.mask` is spelled in no other command."""
    users = set()
    for path in [*(PACKAGE / "stages").glob("*.py"), *(PACKAGE / "commands").glob("*.py")]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "photo.mask":
                users.add(path.stem)
    # prepare names masks and warns if there are none, scores asks which photos eval has scored;
    # they open none (test_weak_supervision).
    assert users <= {"_truth", "eval", "show", "inspect", "prepare", "report",
                     "_report_photos", "scores"}
    assert "_truth" in users


def test_only_eval_and_what_draws_import_what_reads_true_masks() -> None:
    """Nothing that they write is read by a stage that makes something."""
    users = {path.stem for path in PACKAGE.rglob("*.py")
             if "vpltool.stages._truth" in imports_of(path)}
    # `ceiling` measures what true masks would give, and `setup` checks those of the papers' tables;
    # no command reads what they make.
    assert users == {"eval", "show", "_report_photos", "ceiling", "setup"}
    reads = {kind for found in find_stages().values() for kind in found.stage.reads
             if found.stage.writes}
    for name in ("eval", "show", "report"):
        assert not reads & {*find_stages()[name].stage.writes}


def test_only_the_source_of_coco_imports_what_makes_true_masks() -> None:
    """COCO's outlines are read to paint true masks, and for nothing else."""
    users = {path.stem for path in PACKAGE.rglob("*.py")
             if "vpltool.core.outlines.label_map" in imports_of(path)}
    assert users == {"coco"}
    assert not any("vpltool.methods.sources.coco" in imports_of(path)
                   for path in PACKAGE.rglob("*.py"))


OWN_MEANING = {("train-decoder", "batch_size"), ("train-student", "batch_size"),
               ("align", "batch_size"),
               ("train-groups", "batch_size"), ("estimate", "batch_size"), ("show", "limit"),
               ("scores", "out"), ("group-use", "out"), ("report", "split")}
"""Crops, regions or pairs a step, which change the result; photos spread over the split; a table,
not a result; a split that the workspace has."""


def test_shared_settings_have_one_meaning() -> None:
    """A setting of options.py is taken from there by every stage and method, not made again."""
    shared = {name for name, made in vars(options).items() if name != "setting" and (
        inspect.isfunction(made) or isinstance(made, functools.partial))}
    assert shared > {"device", "precision", "workers", "seed", "overwrite", "out", "split"}
    for found in find_stages().values():
        for entry in all_settings(found):
            if entry.name not in shared or (found.name, entry.name) in OWN_MEANING:
                continue
            taken = getattr(options, entry.name)
            default = entry.default
            one = (taken(default) if inspect.signature(taken).parameters and default
                   is not dataclasses.MISSING and entry.name in (
                       "split", "batch_size", "checkpoint_every") else taken())
            assert one.metadata["vpltool"].help == entry.help, f"{found.name}: {entry.name}"


def test_options_are_called_as_their_settings() -> None:
    """The others are told in docs/design.md."""
    other = {(entry.name, entry.flag) for found in find_stages().values()
             for entry in all_settings(found)
             if not entry.positional and entry.flag != f"--{entry.name.replace('_', '-')}"}
    assert other == {("threshold", "--lambda"), ("share", "--lambda"), ("tagged", "--class"),
                     ("ids", "--id"), ("lists", "--list"), ("begin", "--start")}


def test_nothing_but_the_command_line_knows_typer() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py")
             if any(name.split(".")[0] == "typer" for name in imports_of(path))}
    assert users == {"cli.py", "command.py"}


def test_the_library_spells_no_flags() -> None:
    """Errors name settings; the command line spells them as options."""
    for layer in ("core", "clip", "pictures", "parallel", "formats", "datasets", "stages",
                  "methods"):
        for path in files_of(layer):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Raise):
                    text = ast.unparse(node)
                    assert not re.search(r"(?<![\w`-])--[a-z]", text), f"{path.name}: {text}"
