"""A trained segmenter in memory: a photo in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Workspace, open_workspace
from vpltool.formats.changes import workspace_around
from vpltool.stages._group_predict import GroupSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from torch import Tensor

Rgb = Any
"""What a photo may be: a path, a PIL image, or an RGB array (height, width, 3) uint8."""


@dataclass(frozen=True)
class Segmentation:
    """What a segmenter says of a photo.

    Args:
        labels: class of each pixel (height, width) uint8; 0 is the background.
        probabilities: of the background and each class (1 + classes, height, width) float32.
        classes: names of the classes, the first is label 1.
    """

    labels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]


See = Callable[["npt.NDArray[np.uint8]", Sequence[float], bool], "Tensor"]
"""Gives the class probabilities (1 + classes, h, w) of RGB (H, W, 3), by scales and mirroring."""


class Segmenter:
    """A trained segmenter in memory; make one with `Segmenter.load`.

    Called with a photo it gives a `Segmentation`, as `predict` would write it. No workspace is
    needed.

    Args:
        see: a trained network with all that it needs.
        classes: names of the classes, the first is label 1.
    """

    def __init__(self, see: See, classes: Sequence[str]) -> None:
        self.see = see
        self.classes = tuple(classes)

    @classmethod
    def load(cls, file: str | Path, *, classes: Sequence[str] = (), pretrained: str | Path = "",
             device: str = "auto", precision: str = "fp32", max_side: int = 1024,
             threshold: float = 0.95, prompts: str = "single") -> Segmenter:
        """Load a decoder, or trained groups, and the CLIP that it was trained with.

        Args:
            file: what `train_decoder` or `train_groups` wrote.
            classes: words that groups are named by; default: those of the workspace around the
                file. A decoder knows its classes.
            pretrained: weights of the CLIP: a file or folder; default: as the workspace around
                the file says, or as its own header names them.
            device: auto, cpu, cuda or cuda:N.
            precision: fp32, bf16 or fp16, for the CLIP of a decoder.
            max_side: a decoder sees longer photos scaled down to this; 0: never.
            threshold: of groups: where all classes stay below, there is background.
            prompts: of groups: prompts of the words, a name or a file.

        Raises:
            VplError: the file is neither, or its CLIP is not to be had or is another one.
        """
        from vpltool.stages._segmenters import segmenter_header

        path = Path(file)
        header = segmenter_header(path)
        if header.kind == "groups":
            chosen = GroupSettings(threshold=threshold, prompts=prompts)
            named = _workspace_of(path, header.model, str(pretrained), classes)
            return cls(_group_see(path, named, chosen, device), named.classes)
        own = header.facts.get("classes")
        if own is None:
            raise VplError(f"{path} does not name its classes; an older vpltool made it",
                           "`train_decoder(overwrite=True)`")
        if classes and tuple(classes) != tuple(own):
            raise VplError(f"{path} is a decoder of {', '.join(own)}, and of nothing else",
                           "`train_groups()` makes what any word can name")
        return cls(_decoder_see(path, str(pretrained), device, precision, max_side), own)

    def __call__(self, photo: Rgb, *, scales: Sequence[float] = (1.0,), flip: bool = False
                 ) -> Segmentation:
        """Segment a photo.

        Args:
            photo: a path, a PIL image, or an RGB array (height, width, 3) uint8.
            scales: sizes at which a decoder sees it, averaged.
            flip: whether a decoder sees it mirrored, too.

        Raises:
            VplError: the photo cannot be read, or is not RGB; or groups are given scales.
        """
        import torch.nn.functional as F

        from vpltool.core.segment import labels_of

        rgb = _as_rgb(photo)
        size = (rgb.shape[0], rgb.shape[1])
        field = self.see(rgb, scales, flip)
        whole = F.interpolate(field[None].float(), size=size, mode="bilinear",
                              align_corners=False)[0]
        return Segmentation(labels_of(field, size), whole.cpu().numpy(), self.classes)


def _decoder_see(path: Path, pretrained: str, device: str, precision: str, max_side: int) -> See:
    """Load a decoder and its CLIP."""
    from vpltool.clip.load import load_clip
    from vpltool.core.photos import fit_size, to_pixels
    from vpltool.core.segment import segment
    from vpltool.parallel.device import find_device, find_precision
    from vpltool.stages._inputs import check_same_model
    from vpltool.stages._segmenters import read_segmenter

    where = find_device(device)
    dtype = find_precision(precision, where, console.warn)
    header, network = read_segmenter(path)
    model, weights, base = _clip_of(path, header.model, pretrained)
    clip = load_clip(model, weights, where, base=base,
                     normalise=header.model.get("normalise", "model"))
    check_same_model(clip.identity, header.model, f"{weights} and {path}")
    vision, network = clip.vision.to(dtype), network.to(where)

    def see(rgb: npt.NDArray[np.uint8], scales: Sequence[float], flip: bool) -> Tensor:
        target = fit_size((rgb.shape[0], rgb.shape[1]), vision.patch, scale=max(scales),
                          max_side=max_side)
        pixels = to_pixels(rgb, target, clip.mean, clip.std)[None].to(where, dtype)
        return segment(vision, network, pixels, [scale / max(scales) for scale in scales],
                       flip=flip)[0]

    return see


def _group_see(path: Path, named: Workspace, settings: GroupSettings, device: str) -> See:
    """Load trained groups, and encode the words that they are named by."""
    from vpltool.core.photos import to_pixels
    from vpltool.parallel.device import find_device
    from vpltool.stages._group_predict import GroupLens

    lens = GroupLens.of(named, path, settings, find_device(device))

    def see(rgb: npt.NDArray[np.uint8], scales: Sequence[float], flip: bool) -> Tensor:
        if tuple(scales) != (1.0,) or flip:
            raise VplError("groups see a photo by windows, at one scale, and not mirrored",
                           "leave out `scales` and `flip`")
        photos = lens.photos
        pixels = to_pixels(rgb, photos.fit((rgb.shape[0], rgb.shape[1])), photos.mean, photos.std)
        return lens.see(pixels[None])[0].probabilities

    return see


def _workspace_of(file: Path, model: dict[str, str], pretrained: str, classes: Sequence[str]
                  ) -> Workspace:
    """A workspace with the CLIP of groups, and the words that they are named by.

    Raises:
        VplError: there are no words.
    """
    work = workspace_around(file.resolve())
    own = open_workspace(work).classes if (work / "workspace.json").exists() else ()
    if not (classes or own):
        raise VplError(f"{file} can be named by any words, and none is given",
                       "`classes=['cat', 'dog']`")
    name, weights, base = _clip_of(file, model, pretrained)
    return Workspace(base, "", ".", tuple(classes) or own, (), name, weights)


def _clip_of(file: Path, model: dict[str, str], pretrained: str) -> tuple[str, str, Path]:
    """Name and weights of a decoder's CLIP, and the folder that they are relative to."""
    name = model.get("name", "")
    if pretrained:
        return name, pretrained, Path()
    work = workspace_around(file.resolve())
    if (work / "workspace.json").exists():
        workspace = open_workspace(work)
        return workspace.model, workspace.pretrained, workspace.path
    return name, model.get("pretrained", ""), file.parent


def _as_rgb(photo: str | Path | Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import numpy as np
    from PIL import Image

    from vpltool.core.photos import describe_failure, read_photo

    if isinstance(photo, (str, Path)):
        path = Path(photo)
        try:
            return read_photo(path)
        except OSError as error:
            raise VplError(describe_failure(path, error), "give another photo") from error
    array = np.asarray(photo.convert("RGB") if isinstance(photo, Image.Image) else photo)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise VplError(f"an array of {array.dtype} {array.shape} is not a photo",
                       "give RGB (height, width, 3) uint8")
    return array
