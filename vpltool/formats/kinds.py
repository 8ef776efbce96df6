"""Every kind of file: what it holds, which axes its tensors have, which command makes it."""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.errors import VplError, near_name

IGNORE = 255
"""The label of pixels that no loss and no score counts."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a kind: element types as safetensors spells them, and named axes.

    Axes of the same name in one file have the same length. An optional tensor may be absent.
    """

    dtypes: tuple[str, ...]
    axes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        name: its one name, everywhere.
        layout: `json`, `jsonl`, `tensors` (one .safetensors), `tensors-folder` (one
            .safetensors a photo) or `labels-folder` (one palette PNG a photo).
        about: what it is, in a sentence.
        made_by: the command to type when it is missing.
        tensors: what a .safetensors of this kind holds.
        version: goes up when old files can no longer be read.
    """

    name: str
    layout: str
    about: str
    made_by: str
    tensors: dict[str, TensorSpec]
    version: int = 1

    @property
    def suffix(self) -> str:
        """File name suffix of one file of this kind."""
        return {
            "json": ".json", "jsonl": ".jsonl", "labels-folder": ".png",
        }.get(self.layout, ".safetensors")


_STORED = ("F16", "F32")
"""What `--store` chooses from: the size of files, or a few digits more."""

_ALL = (
    Kind("workspace", "json", "data set, class names and model of a workspace",
         "vpltool prepare folder IMAGES --labels FILE.csv", {}),
    Kind("images", "jsonl", "one photo a line: id, image, labels, splits, mask",
         "vpltool prepare folder IMAGES --labels FILE.csv", {}),
    Kind("features", "tensors-folder", "a photo as the frozen CLIP sees it",
         "vpltool extract", {
             "grid": TensorSpec(("I64",), ("2",)),
             "tokens": TensorSpec(_STORED, ("tokens", "width"), optional=True),
             "patches": TensorSpec(_STORED, ("patches", "dim"), optional=True),
             "attention": TensorSpec(_STORED, ("patches", "patches"), optional=True),
             "layers": TensorSpec(_STORED, ("layers", "patches", "width"), optional=True),
             "layer_index": TensorSpec(("I64",), ("layers",), optional=True),
         }),
    Kind("head", "tensors", "CLIP's last block and projection, so that `cam` need not load CLIP",
         "vpltool extract", {}),
    Kind("prototypes", "tensors", "class vectors in CLIP's joint space, from text or from vision",
         "vpltool text-prototypes", {
             "prototypes": TensorSpec(("F32",), ("rows", "dim")),
             "class_index": TensorSpec(("I64",), ("rows",)),
         }),
    Kind("cams", "tensors-folder", "class activation maps of a photo, in [0, 1]",
         "vpltool cam", {
             "cam": TensorSpec(_STORED, ("classes", "height", "width")),
             "classes": TensorSpec(("I64",), ("classes",)),
         }),
    Kind("masks", "labels-folder", "pseudo masks: palette PNG, 255 = ignore", "vpltool crf", {}),
    Kind("decoder", "tensors", "a trained decoder and all that rebuilds it",
         "vpltool train-decoder", {}),
    Kind("predictions", "labels-folder", "a segmenter's output: palette PNG", "vpltool predict",
         {}),
    Kind("probabilities", "tensors-folder", "a segmenter's class probabilities, with background",
         "vpltool predict --probabilities", {
             "cam": TensorSpec(("F16",), ("classes", "height", "width")),
             "classes": TensorSpec(("I64",), ("classes",)),
         }),
    Kind("scores", "json", "confusion matrix, IoU, mIoU, and what was scored", "vpltool eval", {}),
    Kind("gap", "json", "modality gap of prototypes to class regions", "vpltool gap", {}),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}


def kind_named(name: str) -> Kind:
    """Look a kind up.

    Raises:
        VplError: there is no kind of this name.
    """
    if name not in KINDS:
        raise VplError(f"no kind of file is called `{name}`", near_name(name, KINDS))
    return KINDS[name]


def check_shapes(kind: Kind, shapes: dict[str, tuple[str, tuple[int, ...]]], where: str) -> None:
    """Compare a file's tensors with its kind's.

    Args:
        kind: what the file claims to be.
        shapes: tensor name to (dtype, shape).
        where: path, for the message.

    Raises:
        VplError: a tensor is missing or unknown, or its type or an axis does not fit.
    """
    if not kind.tensors:
        return
    lengths: dict[str, int] = {}
    for name, spec in kind.tensors.items():
        if name not in shapes:
            if spec.optional:
                continue
            raise VplError(f"{where}: a {kind.name} file without `{name}`", _remake(kind))
        dtype, shape = shapes[name]
        if dtype not in spec.dtypes or len(shape) != len(spec.axes):
            raise VplError(
                f"{where}: `{name}` is {dtype}{list(shape)}, "
                f"expected {' or '.join(spec.dtypes)}({', '.join(spec.axes)})", _remake(kind))
        for axis, length in zip(spec.axes, shape, strict=True):
            # A number is a length; the first axis of a name sets it for the others.
            wanted = int(axis) if axis.isdigit() else lengths.setdefault(axis, length)
            if length != wanted:
                raise VplError(f"{where}: `{name}` has {length} {axis}, expected {wanted}",
                               _remake(kind))
    unknown = sorted(set(shapes) - set(kind.tensors))
    if unknown:
        raise VplError(f"{where}: a {kind.name} file has no `{unknown[0]}`", _remake(kind))


def _remake(kind: Kind) -> str:
    return f"make it again: {kind.made_by} --overwrite"
