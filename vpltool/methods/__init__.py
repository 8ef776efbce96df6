"""Methods: a file each, found beside this file, in `VPLTOOL_METHODS`, or by entry point.

A file `vpltool/methods/KIND/NAME.py` is the method NAME. Its docstring begins with the line that
`--help` shows, and names the source; `Settings` holds its settings; `READS` what it reads; and one
function, whose name depends on the kind, does the work. Listing methods reads docstrings without
importing the files, so that a method may import torch at its top.

What stages call of a method is declared by a class for each kind. `Method.load` makes the module of
a file an instance of its kind's class (`module.__class__`): what the file defines is found first,
and a hook that it leaves out does what the class says.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeAlias, TypeVar

from vpltool import console
from vpltool.core import distributed, phase_one, proposals, segmenter
from vpltool.errors import VplError, near_name
from vpltool.formats.kinds import FEATURE_TENSORS
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.methods import faults, inputs, own
from vpltool.settings import Settings

FOLDERS = "VPLTOOL_METHODS"
"""Environment variable: folders of further methods, `FOLDER/KIND/NAME.py`, separated as in PATH."""


OfMethod: TypeAlias = "Settings | None"
"""Settings of the method's own class."""


class MethodModule(ModuleType):
    """A method of any kind, with `Settings` of its own."""

    READS: tuple[str, ...] = ()  # what the stage opens for it


class SourceMethod(MethodModule):
    """A method of `sources`."""

    read: Callable[[Path, OfMethod, inputs.SourceRequest], inputs.Source]


class EmbeddingMethod(MethodModule):
    """A method of `embeddings`; patches are (B, h·w, dim), L2-normed."""

    make_patches: Callable[[inputs.EmbeddingBatch, OfMethod], Tensor]


class CamMethod(MethodModule):
    """A method of `cams`; maps are (K_i, h, w) for each photo."""

    make_cams: Callable[[inputs.CamBatch, OfMethod], list[Tensor]]


class Refiner(MethodModule):
    """A method of `refiners`; maps are (K, h, w)."""

    refine: Callable[[inputs.PhotoMaps, OfMethod], Tensor]

    def check(self, features: Mapping[str, object], of_method: OfMethod) -> None:
        """Refuse, before the work, what cannot be done with these options of `extract`."""


class Estimate(Protocol):
    """The function of `estimators`; see `vpltool.methods.estimators.means.estimate`."""

    def __call__(self, pool: phase_one.Pixels, text: Tensor, text_index: Tensor,
                 of_method: OfMethod, seed: int, *, group: distributed.Group = ...
                 ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return rows, their classes, and what else is stored of each."""


class Estimator(MethodModule):
    """A method of `estimators`."""

    estimate: Estimate
    UNLABELLED: bool = False  # whether pixels that are no seeds are read too

    def divides(self, of_method: OfMethod) -> bool:
        """Return whether several processes can share the pixels; `estimate` then takes a group."""
        return False


class LabelRefiner(MethodModule):
    """A method of `label_refiners`; scores and results are (L, H, W)."""

    refine_labels: Callable[[Sequence[inputs.ScoredPhoto], OfMethod, torch.device],
                            list[npt.NDArray[np.float32]]]
    CONFIDENCE: float = 0.0  # the stage's `confidence` unless it is given

    def recorded(self, of_method: OfMethod) -> dict[str, object]:
        """Return the header's record of settings that name something else."""
        return {}

    def runs_on(self, of_method: OfMethod, device: torch.device) -> torch.device:
        """Return the device that the work is done on; refuse what cannot be done."""
        return device

    def warm_up(self, of_method: OfMethod, device: torch.device, labels: int) -> None:
        """Do work that each worker process would otherwise repeat, before they start."""

    def frees_lock(self, of_method: OfMethod, device: torch.device) -> bool:
        """Return whether it runs without the interpreter's lock: in threads, not processes."""
        return False

    def decided(self, photo: inputs.ScoredPhoto, confidence: float
                ) -> npt.NDArray[np.float32] | None:
        """Return the result if refining cannot change a label; None: it must be refined."""
        return None

    def memory_of(self, of_method: OfMethod, device: torch.device, size: tuple[int, int],
                  labels: int) -> int:
        """Estimate the memory that a photo of (height, width) takes, in bytes; 0: unknown."""
        return 0


class Proposer(MethodModule):
    """A method of `proposers`.

    `propose` makes all checks and loads models before it returns; its result yields each photo's
    id, and its proposals or the reason why it has none.
    """

    propose: Callable[[inputs.ProposalRequest, OfMethod],
                      Iterator[tuple[str, proposals.Proposals | str]]]
    PROCESSES: bool = False  # whether photos are done one at a time, each on one core
    SUPERVISION: str = ""  # supervision beyond tags behind the proposals; see `Header`

    def identities(self, of_method: OfMethod) -> dict[str, str]:
        """Return role to identity of its further inputs, for the header."""
        return {}


class SegmenterMethod(MethodModule):
    """A method of `segmenters`."""

    build: Callable[[inputs.SegmenterParts, OfMethod], segmenter.SegmenterNetwork]
    rebuild: Callable[[Mapping[str, object]], segmenter.SegmenterNetwork]
    # Only if no training steps are needed; see `stepless`.
    fit: Callable[[segmenter.SegmenterNetwork, Iterable[inputs.LabelledPhoto], OfMethod,
                   Callable[[Tensor], Tensor]], None]
    TRAINS_ENCODER: bool = False  # whether blocks that its `Settings` name are trained too

    @property
    def stepless(self) -> bool:
        """Whether the network is fitted in one pass over the photos."""
        return "fit" in vars(self)


class Exporter(MethodModule):
    """A method of `exports`; it is given `Predictions`, or what `EXPORTS` names."""

    SUFFIX: str  # of the default path
    export: Callable[[inputs.Predictions | inputs.TrainedSegmenter | inputs.PredictedScene, Path,
                      OfMethod], list[Path]]
    # `predictions` but not masks; `segmenter`, a trained one; `scene`, labels of a GeoTIFF; empty:
    # predictions or masks.
    EXPORTS: str = ""
    MASKS: str = ""  # folder of the label images ID.png in the exported one
    FULL: bool = False  # whether masks without ignored pixels are preferred
    CLASSES: tuple[str, ...]  # only if the receiver knows just these classes
    NEEDS: tuple[str, ...] = ()  # packages that the reader of a format imports; see `labels`

    def check(self, of_method: OfMethod) -> None:
        """Refuse, before the work, what cannot be done."""

    def runs(self, path: Path, of_method: OfMethod) -> Callable[[Tensor], Tensor] | None:
        """Return a function that runs an exported segmenter, pixels (1, 3, H, W) to logits."""
        return None


@dataclass(frozen=True)
class MethodKind:
    """A kind of method, and what its function, in `about`, is given and returns."""

    name: str  # of its folder, and of the entry point group `vpltool.NAME`
    interface: type[MethodModule]
    stage: str
    signature: str  # of its function
    returns: str
    about: str
    reads: tuple[str, ...]  # names that `READS` may contain
    types: tuple[str, ...]  # classes of the function's arguments and result, in `inputs`
    default: str = ""
    also: tuple[str, ...] = ()  # names that a file must define besides the function
    note: str = ""  # what else its results must satisfy, or may contain

    @property
    def function(self) -> str:
        """Name of its function."""
        return self.signature.partition("(")[0]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names that a file of this kind must define."""
        return ("Settings", *(("READS",) if self.reads else ()), self.function, *self.also)


_FEATURES = (*FEATURE_TENSORS, "second_patches", "second_attention")
_OF_ROWS = tuple(faults.ROLES)

_NO_SEED = (
    "No seed is given: the same photo must get the same result again, whatever photos are beside "
    "it. Random numbers come from a generator of each photo's own, by its id: "
    "`torch.Generator().manual_seed(zlib.crc32(photo_id.encode()))`.")

KINDS: Mapping[str, MethodKind] = {kind.name: kind for kind in (
    MethodKind("sources", SourceMethod, "prepare", "read(workspace_path, settings, request)",
               "a `Source`", "photos, tags and splits of a data set", (),
               ("SourceRequest", "Source")),
    MethodKind("embeddings", EmbeddingMethod, "embed", "make_patches(batch, settings)",
               "patches (B, h·w, dim), L2-normed", "patch embeddings from stored features",
               (*_FEATURES, "head"), ("EmbeddingBatch",), "naclip",
               note=_NO_SEED),
    MethodKind("cams", CamMethod, "cam", "make_cams(batch, settings)",
               "a list with a tensor (K_i, h, w) for each photo: a map in [0, 1] of each of its "
               "classes", "class activation maps from features and prototypes",
               (*_FEATURES, "head", "photo", "captions", *_OF_ROWS), ("CamBatch",), "gradcam",
               note=_NO_SEED),
    MethodKind("refiners", Refiner, "refine", "refine(photo, settings)",
               "a tensor (K, h, w): a map in [0, 1] of each of the photo's classes",
               "better maps from a photo's maps",
               (*_FEATURES, "prototypes", "decoder", "photo", "captions", *_OF_ROWS),
               ("PhotoMaps",), "attention", note=_NO_SEED),
    MethodKind("estimators", Estimator, "seed-prototypes",
               "estimate(pool, text, text_index, settings, seed)",
               "L2-normed float32 rows (rows, dim) and the class of each (rows,), with a row of "
               "each class in `text_index`, which has the classes of the rows `text` (rows', dim); "
               "and, if any, a dictionary of tensors of the rows",
               "prototypes from pixels and their seed labels", ("patches",), ("Pixels",), "means",
               note="That dictionary may have, as tensors (rows,): `context_of`, the class whose "
                    "context a row of the background describes, 0 for other rows; `photo_of`, the "
                    "place in `pool.ids` of the photo that a row comes from, -1 for none; `scale` "
                    "and `bias`, with which a patch x scores scale · (x · row) + bias. Methods of "
                    "`cams` and `refiners` read them by these names. `seed` is for random "
                    "numbers."),
    MethodKind("label_refiners", LabelRefiner, "crf", "refine_labels(photos, settings, device)",
               "a list with an array (L, H, W) for each photo, of the size of its scores. "
               "Pixels whose highest value is below `CONFIDENCE` are ignored in training (255); a "
               "file without it has 0, so none are",
               "label probabilities from scores and the photo", ("photo", "proposals"),
               ("ScoredPhoto",), "densecrf"),
    MethodKind("proposers", Proposer, "propose", "propose(request, settings)",
               "an iterator over each photo's id and its proposals, or the reason why it has none",
               "masks of what may be one thing, of each photo", ("photo",), ("ProposalRequest",),
               "felzenszwalb"),
    MethodKind("segmenters", SegmenterMethod, "train-decoder", "build(parts, settings)",
               "a `SegmenterNetwork`, of whose `config`, as JSON holds it, `rebuild(config)` makes "
               "the same network without its weights", "a network that segments photos",
               ("layers", "patches"), ("SegmenterParts", "SegmenterNetwork", "LabelledPhoto"),
               "weclip", ("rebuild",)),
    MethodKind("exports", Exporter, "export", "export(predictions, path, settings)",
               "the paths that were written",
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
        """Docstring of the file, read without importing it; of one that is no Python, its fault."""
        try:
            return ast.get_docstring(ast.parse(self.path.read_bytes())) or ""
        except (SyntaxError, ValueError, OSError) as error:
            return f"Cannot be imported: {error}."

    @property
    def summary(self) -> str:
        """First sentence of the docstring."""
        return self.docstring.split("\n\n")[0].replace("\n", " ").strip().rstrip(".")

    def load(self) -> MethodModule:
        """Import the file; its module becomes an instance of its kind's interface.

        Raises a VplError if it lacks what a method of its kind needs.
        """
        module = (importlib.import_module(self.module) if self.bundled else
                  own.import_method(self.path, self.kind, self.module))
        needs = KINDS[self.kind].needs
        missing = [name for name in needs if name not in vars(module)]
        if missing:
            raise VplError(f"{self.path}: a method of {self.kind} needs `{missing[0]}`",
                           f"it defines {', '.join(needs)}; docs/reference/methods.md says more")
        module.__class__ = KINDS[self.kind].interface
        assert isinstance(module, MethodModule)
        if isinstance(module.READS, str):
            raise VplError(f"{self.path}: READS is the text {module.READS!r}, not a tuple",
                           f"READS = ({module.READS!r},), with a comma")
        unknown = set(module.READS) - set(KINDS[self.kind].reads)
        if unknown:
            raise VplError(f"{self.path}: READS names `{min(unknown)}`",
                           f"{self.kind} read {', '.join(KINDS[self.kind].reads)}")
        if not self.bundled:
            kind = KINDS[self.kind]
            own.guard(module, self.path, kind.name, kind.function, kind.returns,
                      [name for name in kind.reads if name not in module.READS])
        return module

    @property
    def bundled(self) -> bool:
        """Whether it is vpltool's own."""
        return self.module.startswith("vpltool.")

    @property
    def importable(self) -> bool:
        """Whether `load` succeeds; somebody may be editing a file of their own."""
        try:
            self.load()
        except VplError:
            return False
        return True

    @property
    def settings(self) -> type[Settings]:
        """The class of its settings; imports the file."""
        return self.load().Settings


def _own_folders() -> list[Path]:
    return [Path(name) for name in os.environ.get(FOLDERS, "").split(os.pathsep) if name]


def faults_of_folders() -> list[str]:
    """Say of the folders that `VPLTOOL_METHODS` names why methods in them are not found."""
    found = []
    for folder in _own_folders():
        if not folder.is_dir():
            found.append(f"{FOLDERS} names {folder}, which is no folder")
            continue
        below = {file.parent.name for file in folder.glob("*/[!_]*.py")}
        odd = [f"{folder / name} holds no kind of methods: {hint}" for name in sorted(below)
               if name not in KINDS and (hint := near_name(name, KINDS)).startswith("did you")]
        if folder.name in KINDS and not below:
            odd = [f"{FOLDERS} names {folder}, not the folder above it, {folder.parent}"]
        elif not odd and below.isdisjoint(KINDS):
            odd = [f"{FOLDERS} names {folder}, which holds no methods: KIND/NAME.py"]
        found += odd
    return found


@functools.cache
def warn_of_folders(_named: str) -> None:
    """Warn of `faults_of_folders`, once for each value of `VPLTOOL_METHODS`."""
    for fault in faults_of_folders():
        console.warn(fault)


def find_methods(kind: str) -> dict[str, Method]:
    """Return name to method of a kind, sorted; from here, `VPLTOOL_METHODS` and other packages.

    A file of one's own may fail to be imported, see `Method.importable`. Raises a VplError
    if two methods have the same name.
    """
    found: dict[str, Method] = {}
    for method in (*_in_folder(kind, Path(__file__).parent, f"vpltool.methods.{kind}."),
                   *(method for folder in _own_folders() for method in _in_folder(kind, folder)),
                   *_by_entry_point(kind)):
        if method.name in found:
            raise VplError(f"{method.path}: {kind} has a method `{method.name}` already, "
                           f"{found[method.name].path}", "give the file another name")
        found[method.name] = method
    return dict(sorted(found.items()))


def find_method(kind: str, name: str) -> Method:
    """Find a method by its name; raise a VplError if there is none."""
    methods = find_methods(kind)
    if name not in methods:
        raise VplError(f"`method={name!r}`: no such method", hint_of(kind, name))
    return methods[name]


def hint_of(kind: str, name: str) -> str:
    """Return a hint for a name that no method of a kind has."""
    hint = near_name(name, find_methods(kind))
    if odd := faults_of_folders():
        return f"{hint}{' ' if hint.endswith('?') else '; '}{odd[0]}"
    return hint if hint.endswith("?") else f"{hint}; {FOLDERS}=FOLDER finds FOLDER/{kind}/{name}.py"


Loaded = TypeVar("Loaded", bound=MethodModule)


def load_method(interface: type[Loaded], name: str) -> Loaded:
    """Import a method by its kind's interface and its name; see `Method.load`."""
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
