"""Methods: a file each, found beside this file, in `VPLTOOL_METHODS`, or by entry point.

A file `vpltool/methods/KIND/NAME.py` is the method NAME. Its docstring begins with the line that
`--help` shows, and names the source; `Settings` holds its settings; `READS` what it reads; and one
function, whose name depends on the kind, does the work. Listing methods reads docstrings without
importing the files, so that a method may import torch at its top.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from vpltool.errors import VplError, near_name
from vpltool.formats.kinds import FEATURE_TENSORS
from vpltool.methods import interfaces
from vpltool.methods.interfaces import MethodModule
from vpltool.settings import Settings

Loaded = TypeVar("Loaded", bound=MethodModule)

FOLDERS = "VPLTOOL_METHODS"
"""Environment variable: folders of further methods, `FOLDER/KIND/NAME.py`, separated as in PATH."""


@dataclass(frozen=True)
class MethodKind:
    """A kind of method, and what its function, in `about`, is given and returns."""

    name: str  # of its folder, and of the entry point group `vpltool.NAME`
    interface: type[MethodModule]  # what the stage calls of a method
    stage: str
    function: str
    about: str
    reads: tuple[str, ...]  # what `READS` may name
    given: tuple[str, ...]  # classes that the function is given or returns, in `inputs`
    default: str = ""
    also: tuple[str, ...] = ()  # what a file must define besides the function

    @property
    def needs(self) -> tuple[str, ...]:
        """Names that a file of this kind must define."""
        return ("Settings", *(("READS",) if self.reads else ()), self.function, *self.also)


_FEATURES = (*FEATURE_TENSORS, "second_patches", "second_attention")
_OF_ROWS = ("context_of", "photo_of", "scale", "bias")

KINDS: Mapping[str, MethodKind] = {kind.name: kind for kind in (
    MethodKind("sources", interfaces.SourceMethod, "prepare", "read",
               "photos, tags and splits of a data set", (), ("SourceRequest", "Source")),
    MethodKind("embeddings", interfaces.EmbeddingMethod, "embed", "make_patches",
               "patch embeddings from stored features", (*_FEATURES, "head"),
               ("EmbeddingBatch",), "naclip"),
    MethodKind("cams", interfaces.CamMethod, "cam", "make_cams",
               "class activation maps from features and prototypes",
               (*_FEATURES, "head", "photo", "captions", *_OF_ROWS), ("CamBatch",), "gradcam"),
    MethodKind("refiners", interfaces.Refiner, "refine", "refine",
               "better maps from a photo's maps",
               (*_FEATURES, "prototypes", "decoder", "photo", "captions", *_OF_ROWS),
               ("PhotoMaps",), "attention"),
    MethodKind("estimators", interfaces.Estimator, "seed-prototypes", "estimate",
               "prototypes from pixels and their seed labels", ("patches",), ("Pixels",), "means"),
    MethodKind("label_refiners", interfaces.LabelRefiner, "crf", "refine_labels",
               "label probabilities from scores and the photo", ("photo", "proposals"),
               ("ScoredPhoto",), "densecrf"),
    MethodKind("proposers", interfaces.Proposer, "propose", "propose",
               "masks of what may be one thing, of each photo", ("photo",), ("ProposalRequest",),
               "felzenszwalb"),
    MethodKind("segmenters", interfaces.SegmenterMethod, "train-decoder", "build",
               "a network that segments photos", ("layers", "patches"),
               ("SegmenterParts", "LabelledPhoto"), "weclip", ("rebuild",)),
    MethodKind("exports", interfaces.Exporter, "export", "export",
               "predictions, or a segmenter, in another tool's format", (),
               ("Predictions", "TrainedSegmenter"), also=("SUFFIX",)),
)}


@dataclass(frozen=True)
class Method:
    """A method that was found; nothing of its file is imported before `load`."""

    kind: str
    name: str
    path: Path
    module: str = ""  # its dotted name, if it belongs to a package

    @functools.cached_property
    def docstring(self) -> str:
        """Docstring of the file, read without importing it; a VplError if it is not Python."""
        try:
            return ast.get_docstring(ast.parse(self.path.read_text("utf-8"))) or ""
        except (SyntaxError, UnicodeDecodeError, OSError) as error:
            raise VplError(f"{self.path}: not a method ({error})",
                           "fix the file, or take it out of the folder") from error

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        return self.docstring.split("\n\n")[0].replace("\n", " ").strip().rstrip(".")

    def load(self) -> MethodModule:
        """Import the file; its module becomes an instance of its kind's interface.

        Raises a VplError if it lacks what a method of its kind needs.
        """
        module = (importlib.import_module(self.module) if self.module
                  else _import_file(self.path, f"vpltool_method_{self.kind}_{self.path.stem}"))
        needs = KINDS[self.kind].needs
        missing = [name for name in needs if name not in vars(module)]
        if missing:
            raise VplError(f"{self.path}: a method of {self.kind} needs `{missing[0]}`",
                           f"it defines {', '.join(needs)}; docs/reference/methods.md says more")
        module.__class__ = KINDS[self.kind].interface
        assert isinstance(module, MethodModule)
        unknown = set(module.READS) - set(KINDS[self.kind].reads)
        if unknown:
            raise VplError(f"{self.path}: READS names `{min(unknown)}`",
                           f"{self.kind} read {', '.join(KINDS[self.kind].reads)}")
        return module

    @property
    def settings(self) -> type[Settings]:
        """Its settings; imports the file."""
        return self.load().Settings


def _import_file(path: Path, name: str) -> ModuleType:
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses look their own module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find_methods(kind: str) -> dict[str, Method]:
    """Name to method of a kind, by name; folders of `VPLTOOL_METHODS` and other packages included.

    Raises a VplError if two methods have the same name.
    """
    found: dict[str, Method] = {}
    folders = filter(None, os.environ.get(FOLDERS, "").split(os.pathsep))
    for method in (*_in_folder(kind, Path(__file__).parent, f"vpltool.methods.{kind}."),
                   *(method for folder in folders for method in _in_folder(kind, Path(folder))),
                   *_by_entry_point(kind)):
        if method.name in found:
            raise VplError(f"{method.path}: {kind} has a method `{method.name}` already, "
                           f"{found[method.name].path}", "give the file another name")
        found[method.name] = method
    return dict(sorted(found.items()))


def find_method(kind: str, name: str) -> Method:
    """Find a method by its name; a VplError if there is none."""
    methods = find_methods(kind)
    if name not in methods:
        raise VplError(f"`method={name!r}`: no such method", near_name(name, methods))
    return methods[name]


def load_method(interface: type[Loaded], name: str) -> Loaded:
    """Import a method by its name and its kind's interface; a VplError if it lacks something."""
    (kind,) = (kind for kind in KINDS.values() if kind.interface is interface)
    module = find_method(kind.name, name).load()
    assert isinstance(module, interface)
    return module


def _in_folder(kind: str, folder: Path, package: str = "") -> list[Method]:
    return [Method(kind, path.stem.replace("_", "-"), path, package and package + path.stem)
            for path in sorted((folder / kind).glob("*.py")) if not path.stem.startswith("_")]


_entry_points = functools.cache(entry_points)
"""Entry points of all packages; looked up once: it takes tens of milliseconds."""


@functools.cache
def _by_entry_point(kind: str) -> list[Method]:
    found = []
    for entry in _entry_points().select(group=f"vpltool.{kind}"):
        spec = importlib.util.find_spec(entry.value)
        if spec is None or spec.origin is None:
            raise VplError(f"entry point {entry.name} = {entry.value}: no such module",
                           f"pip uninstall the package that declares it in vpltool.{kind}")
        found.append(Method(kind, entry.name, Path(spec.origin), entry.value))
    return found
