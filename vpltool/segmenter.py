"""A trained segmenter in memory: it maps a photo to labels and probabilities."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from vpltool.core import photos, segment
from vpltool.engine.groups import GroupSettings
from vpltool.engine.segmenters import RunningSegmenter, open_segmenter, stand_in_workspace
from vpltool.errors import VplError, first_few, first_line, near_path
from vpltool.formats import Workspace, atomic, kinds, open_workspace
from vpltool.formats.labels import png_bytes
from vpltool.lazy import F, Image, np, npt, torch
from vpltool.parallel.plain_torch import plain_torch
from vpltool.pictures.overlays import overlay
from vpltool.settings import make

Rgb: TypeAlias = ("str | Path | bytes | bytearray | memoryview | IO[bytes] | Image.Image | "
                  "npt.ArrayLike")
"""What a photo may be: see `Segmenter.__call__`."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The segmentation of a photo.

    Args:
        labels: class of each pixel (height, width) uint8; 0 is the background.
        field: probabilities of the background and each class (1 + classes, h, w), a few per patch.
        classes: names of the classes, the first is label 1.
        photo: its pixels (height, width, 3) uint8.
    """

    labels: npt.NDArray[np.uint8]
    field: torch.Tensor
    classes: tuple[str, ...]
    photo: npt.NDArray[np.uint8]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = [self.classes[index - 1] for index in np.unique(self.labels) if index]
        return f"Segmentation({width}×{height}: {', '.join(found) or 'background'})"

    @functools.cached_property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """Probabilities of background and classes (1 + classes, height, width), at full size."""
        whole = F.interpolate(self.field[None].float(), size=self.labels.shape, mode="bilinear",
                              align_corners=False)[0]
        found: npt.NDArray[np.float32] = whole.numpy()
        return found

    def overlay(self) -> Image.Image:
        """Draw the labels over the photo, with a legend of the classes below."""
        return overlay(self.photo, self.labels, dict(enumerate(self.classes, 1)))

    def save(self, file: str | Path) -> Path:
        """Save the labels as a palette PNG, as `predict` does, without its header.

        Raises:
            VplError: the name does not end in .png, or the file cannot be written.
        """
        path = Path(file)
        if path.suffix.lower() != ".png":
            raise VplError(f"{path}: labels are saved as PNG", f"save({path.stem + '.png'!r}); a "
                           "picture is `overlay().save(FILE)`")
        with atomic.atomic_path(path) as temporary:
            temporary.write_bytes(png_bytes(self.labels))
        return path

    def plot(self) -> Any:
        """Draw the overlay with matplotlib; return its axes.

        Raises:
            VplError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise VplError("matplotlib is not installed", "pip install matplotlib; or "
                           "`overlay()`, a picture that notebooks show") from None
        axes = plt.subplots()[1]
        axes.imshow(self.overlay())
        axes.axis("off")
        return axes


class Segmenter:
    """A trained segmenter in memory, made by `Segmenter.load`.

    A call with a photo returns a `Segmentation` with the labels of `predict`, without a workspace.
    """

    def __init__(self, running: RunningSegmenter, settings: GroupSettings, classes: Sequence[str]
                 ) -> None:
        self._running, self._settings = running, settings
        self.classes = tuple(classes)

    @classmethod
    def load(cls, file: str | Path, *, classes: Sequence[str] = (), pretrained: str | Path = "",
             device: str = "auto", precision: str = "fp32", max_side: int | None = None,
             threshold: float = 0.95, prompts: str = "single") -> Segmenter:
        """Load a bundle that `export` wrote, a decoder, or trained groups.

        Args:
            file: the output of `export`, `train_decoder` or `train_groups`.
            classes: words for groups; default: those of the workspace around the file. Bundles and
                decoders know their classes.
            pretrained: weights of the encoder, if the file does not hold them: a file, or for a
                CLIP of open_clip or a model of transformers its folder; default: those of the
                workspace around it, or those named in its header.
            device: auto, cpu, mps, cuda or cuda:N.
            precision: fp32, bf16, fp16 or auto, for the CLIP; groups compute in fp32.
            max_side: longer photos are scaled down to this first; 0: never; default: as in
                training.
            threshold: of groups: pixels where all classes are below it are background.
            prompts: of groups: prompts of the words, a name or a file.

        Raises:
            VplError: the file is no segmenter, or its CLIP is missing or another one.
        """
        path = Path(file)
        if not path.is_file():
            raise VplError(f"{path} does not exist" if not path.exists() else
                           f"{path} is a folder, not a segmenter's file", _near_segmenter(path)
                           or "give what `train_decoder()` wrote, WORK/decoder/NAME.safetensors, "
                              "or an exported bundle")
        segmenter = open_segmenter(path)
        clip = _named_clip(path, segmenter.header.model, str(pretrained))
        named = segmenter.named(clip, tuple(classes))
        settings = make(GroupSettings, {
            "device": device, "precision": precision, "max_side": max_side,
            "threshold": threshold, "prompts": prompts}, ())
        with plain_torch(whole=True):
            return cls(segmenter.load(named, settings), settings, named.classes)

    def __call__(self, photo: Rgb, *, scales: Sequence[float] | float | str = (1.0,),
                 flip: bool = False, tile: int | str = "", overlap: float = 0.25) -> Segmentation:
        """Segment a photo.

        Args:
            photo: a path; the bytes of a file, or an open one; a PIL image, which is turned as its
                EXIF says; or an RGB array (height, width, 3) uint8, which is copied.
            scales: scales of the photo whose results a decoder averages; also as `"1,0.75"`.
            flip: whether a decoder also averages the mirrored photo.
            tile: side of the tiles of larger photos; none is scaled down then, unless `max_side`
                was given to `load`, or tiles were in training; auto: as in `predict`; empty: none.
            overlap: overlap of neighbouring tiles, as a share of a tile.

        Raises:
            VplError: the photo cannot be read, or is not RGB; or groups are given scales.
        """
        rgb = _as_rgb(photo)
        listed = [scales] if isinstance(scales, (str, int, float)) else scales
        settings = replace(self._settings, scales=",".join(map(str, listed)), flip=flip,
                           tile=str(tile), overlap=overlap)
        with plain_torch():
            field = self._running.photo(rgb, settings)
            labels = segment.labels_of(field, (rgb.shape[0], rgb.shape[1]))
            return Segmentation(labels, field.cpu(), self.classes, rgb)


def _near_segmenter(path: Path) -> str:
    """Return a hint with the segmenters in a folder, or a path like this; empty without any."""
    if not path.is_dir():
        return near_path(path)
    found = kinds.results_of(path, "decoder") or sorted(path.glob("*.safetensors"))
    named = first_few((f"`{file.as_posix()}`" for file in found), " or ")
    return f"did you mean {named}?" if found else ""


def _named_clip(file: Path, model: dict[str, str], pretrained: str) -> Workspace:
    """Return the workspace around a file, or a stand-in that names only the file's CLIP."""
    work = kinds.workspace_around(file.resolve())
    if not pretrained and kinds.is_workspace(work):
        return replace(open_workspace(work), normalise=model.get("normalise", "model"))
    return stand_in_workspace(Path() if pretrained else file.parent, model, pretrained=pretrained)


def _as_rgb(photo: Rgb) -> npt.NDArray[np.uint8]:
    """Decode a photo to RGB (height, width, 3), which it does not share."""
    try:
        if isinstance(photo, (str, Path)):
            return photos.read_photo(Path(photo))
        if isinstance(photo, Image.Image):
            if not all(photo.size):
                raise OSError("it has no pixels")
            return photos.rgb_of(photo, keep=True)
        if isinstance(photo, (bytes, bytearray, memoryview)):
            return photos.read_photo(bytes(photo))
        if hasattr(photo, "read"):
            return photos.read_photo(_content(cast("IO[bytes]", photo)))
        array = np.asarray(photo).copy()
    # Pillow, NumPy, torch and open files have an error of their own for each fault.
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        named = f"{photo}: " if isinstance(photo, (str, Path)) else "the photo cannot be read: "
        raise VplError(named + first_line(error), _other_photo(photo)) from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise VplError(f"an array of {array.dtype} {array.shape} is not a photo",
                       "give RGB (height, width, 3) uint8" + _as_photo(array, photo))
    return array


def _content(file: IO[bytes] | IO[str]) -> bytes:
    """Read an open file."""
    content = file.read()
    if isinstance(content, str):
        raise OSError("the file is open as text, not as bytes")
    return bytes(content)


def _other_photo(photo: Rgb) -> str:
    """Return a hint about what cannot be read."""
    if isinstance(photo, str) and "://" in photo:
        return "addresses are not read: download the file, and give its path or its bytes"
    if isinstance(photo, (str, Path)) and not Path(photo).exists():
        return near_path(Path(photo)) or "check the path, which is relative to the current folder"
    if hasattr(photo, "read"):
        return "a file is read from where it stands: `seek(0)`; if it is closed, open it again"
    return "give another photo"


def _as_photo(array: npt.NDArray[Any], given: Rgb) -> str:
    """Return the code that makes a photo of an array, for a hint; empty if that is not plain."""
    code, shape, tensor = "photo", array.shape, hasattr(given, "permute")
    if len(shape) == 4:
        code, shape = f"{code}[0]", shape[1:]
    if len(shape) == 3 and shape[0] == 3 != shape[2]:
        code += ".permute(1, 2, 0)" if tensor else ".transpose(1, 2, 0)"
        shape = (*shape[1:], 3)
    if len(shape) != 3 or shape[2] != 3 or not array.size or array.dtype.kind not in "fiu" or (
            array.min() < 0 or array.max() > 255):
        return ""
    if array.dtype.kind == "f" and array.max() <= 1:
        code = f"({code} * 255)"
    if array.dtype != np.uint8:
        code += ".byte()" if tensor else ".astype('uint8')"
    return f": `{code}`"
