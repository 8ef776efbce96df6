"""All kinds of file: their tensors, folders, and commands; checks of shapes and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError, near_name
from vpltool.lazy import np, npt, torch
from vpltool.names import is_hidden

IGNORE = 255
"""The label of pixels ignored by losses and scores."""

RESERVED = "(ignored)"
"""Placeholder name of class 255, so that label 255 is ignored in 16-bit masks as well."""

MOST_CLASSES = 65_534
"""Maximum number of classes: labels have 16 bits, and 0 and 255 are reserved."""


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in label order from 1; with more than 254, label 255 is reserved."""
    plain = tuple(name for name in names if name != RESERVED)
    return plain if len(plain) < IGNORE else (*plain[: IGNORE - 1], RESERVED, *plain[IGNORE - 1 :])


@dataclass(frozen=True)
class TensorSpec:
    """The specification of one tensor: dtypes, as named by safetensors, and named axes.

    Axes of the same name must have the same length within a file. Optional tensors may be absent.
    """

    dtypes: tuple[str, ...]
    axes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str  # the same everywhere
    # `json`, `jsonl`, `tensors` (one .safetensors), `tensors-folder` (one .safetensors a photo),
    # `labels-folder` (one palette PNG a photo) or `raster` (one GeoTIFF)
    layout: str
    about: str  # description in one phrase
    made_by: str  # the call that makes it, in backticks as in `VplError`
    tensors: dict[str, TensorSpec]  # of a .safetensors file of this kind
    version: int = 1  # increased when older files can no longer be read
    folder: str = ""  # folder in the workspace; empty: the kind's name
    # whether files have no folder of their own: they lie beside others or where users ask
    apart: bool = False

    @property
    def per_photo(self) -> bool:
        """Whether it is stored as a folder with one file per photo."""
        return self.layout.endswith("-folder")

    @property
    def suffix(self) -> str:
        """Suffix of the files of this kind."""
        return _SUFFIXES.get(self.layout, ".safetensors")


_SUFFIXES = {"json": ".json", "jsonl": ".jsonl", "labels-folder": ".png", "raster": ".tif"}

_PREPARE = "`prepare('folder', images='IMAGES', labels='FILE.csv')`"

_STORED = ("F16", "F32")
"""Dtypes of the setting `store`: half precision for small files, or single precision."""

_ALL = (
    Kind("workspace", "json", "data set, class names and model of a workspace", _PREPARE, {}),
    Kind("images", "jsonl", "one line per photo: id, image, labels, splits, mask, captions",
         _PREPARE, {}),
    Kind("changes", "jsonl", "what changed in a workspace, one line per `prepare`", _PREPARE, {}),
    Kind("recipe", "json", "the recipe that was started last, and whether it is finished",
         "`run(recipe='own-photos')`", {}),
    Kind("features", "tensors-folder", "a photo as the frozen CLIP sees it", "`extract()`", {
             "grid": TensorSpec(("I64",), ("2",)),
             "tokens": TensorSpec(_STORED, ("tokens", "width"), optional=True),
             "patches": TensorSpec(_STORED, ("patches", "dim"), optional=True),
             "attention": TensorSpec(_STORED, ("patches", "patches"), optional=True),
             "attentions": TensorSpec(_STORED, ("blocks", "patches", "patches"), optional=True),
             "layers": TensorSpec(_STORED, ("layers", "patches", "width"), optional=True),
             "layer_index": TensorSpec(("I64",), ("layers",), optional=True),
         }),
    Kind("head", "tensors", "CLIP's last block and projection, so that `cam` need not load CLIP",
         "`extract()`", {}, apart=True),
    Kind("prototypes", "tensors", "class vectors in CLIP's joint space, from text or from vision",
         "`text_prototypes()`", {
             "prototypes": TensorSpec(("F32",), ("rows", "dim")),
             "class_index": TensorSpec(("I64",), ("rows",)),
             "context_of": TensorSpec(("I64",), ("rows",), optional=True),
             "photo_of": TensorSpec(("I64",), ("rows",), optional=True),
             "scale": TensorSpec(("F32",), ("rows",), optional=True),
             "bias": TensorSpec(("F32",), ("rows",), optional=True),
             "space_first": TensorSpec(("F32",), ("dim", "joint"), optional=True),
             "space_further": TensorSpec(("F32",), ("further", "dim", "dim"), optional=True),
             "space_bias": TensorSpec(("F32",), ("layers", "dim"), optional=True),
         }),
    Kind("alignment", "tensors", "checkpoint of an interrupted alignment", "`align()`", {},
         apart=True),
    Kind("tags", "tensors-folder", "how sure CLIP is of each class in a photo", "`tag()`", {
        "scores": TensorSpec(("F32",), ("classes",)),
    }),
    Kind("cams", "tensors-folder", "class activation maps of a photo, in [0, 1]",
         "`cam()`", {
             "cam": TensorSpec(_STORED, ("classes", "height", "width")),
             "classes": TensorSpec(("I64",), ("classes",)),
         }),
    Kind("proposals", "tensors-folder", "masks of what may be one thing, as run lengths",
         "`propose()`", {
             "size": TensorSpec(("I64",), ("2",)),
             "runs": TensorSpec(("I64",), ("runs",)),
             "counts": TensorSpec(("I64",), ("proposals",)),
             "scores": TensorSpec(("F32",), ("proposals",)),
             "word": TensorSpec(("I64",), ("proposals",)),
             "words": TensorSpec(("U8",), ("letters",)),
         }),
    Kind("masks", "labels-folder", "pseudo masks: palette PNG, 255 = ignore", "`crf()`", {}),
    Kind("corrections", "labels-folder", "masks that a person has corrected: palette PNG",
         "`prepare('folder', images='IMAGES', corrections='DIR')`", {}, apart=True),
    Kind("decoder", "tensors", "a trained decoder, with everything needed to rebuild it",
         "`train_decoder()`", {}),
    Kind("bundle", "tensors", "a segmenter with all that it needs: decoder, classes, CLIP",
         "`export('bundle')`", {}, apart=True),
    Kind("groups", "tensors", "encoders that divide photos into groups, which words can name",
         "`train_groups()`", {}),
    Kind("group-maps", "tensors-folder", "which groups of both stages a photo's patches belong to",
         "`predict()`", {
             "first": TensorSpec(("F16",), ("groups", "height", "width")),
             "second": TensorSpec(("F16",), ("parts", "height", "width")),
         }),
    Kind("predictions", "labels-folder", "a segmenter's output: palette PNG", "`predict()`", {}),
    Kind("scenes", "raster", "labels of a GeoTIFF, as a GeoTIFF; 255 is nodata",
         "`predict(images=['SCENE.tif'])`", {}, apart=True),
    Kind("probabilities", "tensors-folder", "a segmenter's class probabilities, with background",
         "`predict(probabilities=True)`", {
             "probabilities": TensorSpec(("F16",), ("classes", "height", "width")),
             "classes": TensorSpec(("I64",), ("classes",)),
         }, version=2),
    Kind("scores", "json", "confusion matrix, IoU, mIoU, and what was scored", "`eval()`", {}),
    Kind("agreement", "json", "how predictions agree with the photos' tags, and which disagree",
         "`eval(against='tags')`", {}, folder="scores"),
    Kind("calibration", "json", "how sure a segmenter may be, from the tags of held-out photos",
         "`calibrate()`", {}),
    Kind("gap", "json", "modality gap of prototypes to class regions", "`gap()`", {},
         folder="scores"),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}

FEATURE_TENSORS = tuple(name for name, spec in KINDS["features"].tensors.items()
                        if spec.dtypes == _STORED)
"""Tensors that `extract` can store and methods can read: `tokens`, `patches`, `attention`, …"""

SECOND_FOLDER = "features-second"
"""Folder of a second encoder's features, beside those of the first."""

REVIEWED_TAGS = "review/tags.csv"
"""Path in a workspace of the tags, once `review` has changed some."""

CHECKPOINT = ".checkpoint.safetensors"
"""Suffix of a training checkpoint, which lies beside the result."""


def is_workspace(path: Path) -> bool:
    """Return whether a folder is a workspace."""
    return (path / "workspace.json").exists()


def workspace_around(path: Path) -> Path:
    """Return the workspace folder that contains a path; the path itself if there is none."""
    return next(filter(is_workspace, (path, *path.parents)), path)


def folder_of(work: Path, kind: str) -> Path:
    """Return the folder of a workspace that holds the files of a kind."""
    return work / (KINDS[kind].folder or kind)


def results_of(work: Path, kind: str) -> list[Path]:
    """Return the single-file results of a kind, without hidden files and training checkpoints."""
    # Labels of GeoTIFFs are in a folder of each segmenter.
    folder, below = folder_of(work, kind), "**/*" if KINDS[kind].layout == "raster" else "*"
    return sorted(path for path in folder.glob(below + KINDS[kind].suffix)
                  if not is_hidden(path, folder) and not path.name.endswith(CHECKPOINT))


def result_name(kind: str, name: str) -> str:
    """Return the users' name for a result in its standard place, such as `cams/text`."""
    return f"{kind}/{name}"


def folders_of(*, per_photo: bool) -> tuple[str, ...]:
    """Return the folders that hold one file per photo, or those of single .safetensors files."""
    return tuple(kind.name for kind in _ALL if not kind.apart
                 and (kind.per_photo if per_photo else kind.layout == "tensors"))


def result_path(work: Path, kind: str, name: str, split: str = "") -> Path:
    """Return the standard path of a result in a workspace, used unless `out` is given.

    For features, `name` is the split; single files have no split.
    """
    found, folder = KINDS[kind], folder_of(work, kind)
    return folder / name / split if found.per_photo else folder / f"{name}{found.suffix}"


def kind_named(name: str) -> Kind:
    """Return the kind of a name.

    Raises:
        VplError: there is no kind of this name.
    """
    if name not in KINDS:
        raise VplError(f"no kind of file is called `{name}`", near_name(name, KINDS))
    return KINDS[name]


def check_shapes(kind: Kind, shapes: dict[str, tuple[str, tuple[int, ...]]], where: str) -> None:
    """Check a file's tensors, name to (dtype, shape), against its kind; `where` is the path.

    Raises:
        VplError: a tensor is missing or unknown, or its type or shape is wrong.
    """
    if not kind.tensors:
        return
    remake = f"recompute it with `overwrite=True`: {kind.made_by}"
    lengths: dict[str, int] = {}
    for name, spec in kind.tensors.items():
        if name not in shapes:
            if spec.optional:
                continue
            raise VplError(f"{where}: a {kind.name} file without `{name}`", remake)
        dtype, shape = shapes[name]
        if dtype not in spec.dtypes or len(shape) != len(spec.axes):
            raise VplError(
                f"{where}: `{name}` is {dtype}{list(shape)}, "
                f"expected {' or '.join(spec.dtypes)}({', '.join(spec.axes)})", remake)
        for axis, length in zip(spec.axes, shape, strict=True):
            # A digit is a fixed length; otherwise the first axis of a name sets the length.
            wanted = int(axis) if axis.isdigit() else lengths.setdefault(axis, length)
            if length != wanted:
                raise VplError(f"{where}: `{name}` has {length} {axis}, expected {wanted}", remake)
    unknown = sorted(set(shapes) - set(kind.tensors))
    if unknown:
        raise VplError(f"{where}: a {kind.name} file has no `{unknown[0]}`", remake)


_NEVER_ZERO = {"features": FEATURE_TENSORS, "prototypes": ("prototypes",)}
"""Tensors by kind that are never all zero, unless the disk lost their content."""

_CLASSES = ("classes", "class_index")

_PATCHES = {"tokens": (0, 16), "patches": (0, 0), "attention": (0, 0), "attentions": (1, 0),
            "layers": (1, 0)}
"""Patch axis of each feature tensor, and the maximum number of further tokens along it."""


class BadValues(VplError):
    """Invalid values in a file: where they are, and what is wrong."""

    # The single argument form is needed to unpickle it from another process.
    def __init__(self, where: str, reason: str = "", hint: str = "") -> None:
        super().__init__(": ".join(filter(None, (where, reason))), hint)
        self.reason = reason or where


def check_values(kind: str, tensors: Mapping[str, torch.Tensor], where: str, hint: str = "",
                 labels: int = MOST_CLASSES + 1) -> None:
    """Check the values of some or all tensors of a file, before writing or after reading.

    Classes must be below `labels`, the number of labels with background. `where` names the file.

    Raises:
        BadValues: values are not finite, not valid classes, or all zero where that cannot be.
    """
    for name, tensor in tensors.items():
        try:
            reason = _fault(kind, name, tensor, labels)
        except RuntimeError:
            # Some dtypes can only be stored.
            reason = f"has the type {tensor.dtype}, which vpltool does not write"
        if reason:
            raise BadValues(where, f"`{name}` {reason}", hint)
    if kind == "features" and "grid" in tensors:
        height, width = tensors["grid"].tolist()
        for name, (axis, more) in _PATCHES.items():
            if name in tensors and (
                    min(height, width) < 1
                    or not 0 <= tensors[name].shape[axis] - height * width <= more):
                raise BadValues(where, f"`{name}` is not of a grid of {height}×{width} patches",
                                hint)


def form_of(shapes: Mapping[str, Sequence[int]], patches: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that features of all photos of a folder have in common, by tensor.

    They omit the patch axis; for tokens, the number of tokens that are not patches is given. If
    `patches` is 0, unknown, tokens are left out.
    """
    specs = KINDS["features"].tensors
    return {name: tuple(length - patches if axis == "tokens" else length
                        for axis, length in zip(specs[name].axes, shape, strict=True)
                        if axis != "patches")
            for name, shape in shapes.items()
            if name in _PATCHES and (patches or name != "tokens")}


def check_form(tensors: Mapping[str, torch.Tensor], usual: Mapping[str, tuple[int, ...]],
               where: str, hint: str) -> None:
    """Check that a photo's features have the same form as the others; see `form_of`.

    Raises:
        BadValues: they differ.
    """
    patches = int(tensors["grid"].prod()) if "grid" in tensors else 0
    found = form_of({name: tensor.shape for name, tensor in tensors.items()}, patches)
    for name, form in found.items():
        if usual.get(name, form) != form:
            sizes = "×".join(map(str, tensors[name].shape))
            raise BadValues(where, f"`{name}` has the size {sizes}, "
                            f"{f'with {patches} patches, ' if patches else ''}which does not fit "
                            "the other photos", hint)


def _fault(kind: str, name: str, tensor: torch.Tensor, labels: int) -> str:
    if not tensor.numel() or tensor.dtype == torch.bool or tensor.is_complex():
        return ""
    if not tensor.is_floating_point():
        if name in _CLASSES and not 0 <= int(tensor.min()) <= int(tensor.max()) < labels:
            return f"names a class that is not among the {labels - 1}"
        return ""
    # One pass, which propagates NaN; `isfinite` takes ten times as long.
    low, high = (float(end) for end in torch.aminmax(tensor.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds NaN or infinity"
    return ("holds nothing but zeros" if low == high == 0 and name in _NEVER_ZERO.get(kind, ())
            else "")


def check_labels(labels: npt.NDArray[np.uint8], count: int) -> None:
    """Check that labels are below `count`, background included, or 255; with 0, accept any.

    Raises:
        BadValues: a label is not.
    """
    if count and bool(((labels >= count) & (labels != IGNORE)).any()):
        raise BadValues("", f"a pixel is of a class that is not among the {count - 1}")
