"""A trained segmenter in memory: a photo in, labels and probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Workspace, open_workspace
from vpltool.formats.changes import workspace_around

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from vpltool.clip.encoders import Encoder
    from vpltool.core.segmenter import SegmenterNetwork

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


class Segmenter:
    """A trained network together with its encoder; make one with `Segmenter.load`.

    Called with a photo it gives a `Segmentation`, as `predict` would write it. No workspace is
    needed.

    Args:
        network: the trained network.
        encoder: CLIP's frozen vision tower.
        classes: names of the classes, the first is label 1.
        max_side: longer photos are scaled down to this first; 0: never.
    """

    def __init__(self, network: SegmenterNetwork, encoder: Encoder, classes: Sequence[str],
                 max_side: int = 1024) -> None:
        self.network = network
        self.encoder = encoder
        self.classes = tuple(classes)
        self.max_side = max_side

    @classmethod
    def load(cls, file: str | Path, *, pretrained: str | Path = "", device: str = "auto",
             precision: str = "fp32", max_side: int | None = None) -> Segmenter:
        """Load a bundle that `export` wrote, or a decoder that `train_decoder` wrote.

        Args:
            file: the bundle or decoder.
            pretrained: weights of the CLIP, a file or folder, where the file does not hold them;
                default: as the workspace around it says, or as its header names them.
            device: auto, cpu, cuda or cuda:N.
            precision: fp32, bf16 or fp16, for the CLIP.
            max_side: longer photos are scaled down to this first; 0: never; default: what the
                bundle says, 1024 for a decoder.

        Raises:
            VplError: the file is neither, or its CLIP is not to be had or is another one.
        """
        from vpltool.parallel.device import find_device, find_precision
        from vpltool.stages._running import load_trained
        from vpltool.stages._segmenters import segmenter_header

        path, where = Path(file), find_device(device)
        dtype = find_precision(precision, where, console.warn)
        trained = load_trained(path, _named_clip(path, segmenter_header(path).model,
                                                 str(pretrained)), where)
        trained.encoder.vision.to(dtype)
        own = trained.header.facts.get("max_side", 1024)
        return cls(trained.network, trained.encoder, trained.classes,
                   own if max_side is None else max_side)

    def __call__(self, photo: Rgb, *, scales: Sequence[float] = (1.0,), flip: bool = False
                 ) -> Segmentation:
        """Segment a photo.

        Args:
            photo: a path, a PIL image, or an RGB array (height, width, 3) uint8.
            scales: sizes at which it is seen, averaged.
            flip: whether it is seen mirrored, too.

        Raises:
            VplError: the photo cannot be read, or is not RGB.
        """
        import torch.nn.functional as F

        from vpltool.core.photos import fit_size, to_pixels
        from vpltool.core.segment import labels_of, segment

        rgb = _as_rgb(photo)
        size = (rgb.shape[0], rgb.shape[1])
        vision, factors = self.encoder.vision, [scale / max(scales) for scale in scales]
        target = fit_size(size, vision.patch, scale=max(scales), max_side=self.max_side)
        weight = vision.conv.weight
        pixels = to_pixels(rgb, target, self.encoder.mean, self.encoder.std)[None]
        field = segment(vision, self.network, pixels.to(weight.device, weight.dtype), factors,
                        flip=flip)[0]
        whole = F.interpolate(field[None].float(), size=size, mode="bilinear",
                              align_corners=False)[0]
        return Segmentation(labels_of(field, size), whole.cpu().numpy(), self.classes)


def _named_clip(file: Path, model: dict[str, str], pretrained: str) -> Workspace:
    """The workspace around a file; without one, a stand-in that names only the file's CLIP."""
    from vpltool.stages._running import standing_in

    work = workspace_around(file.resolve())
    if not pretrained and (work / "workspace.json").exists():
        return replace(open_workspace(work), normalise=model.get("normalise", "model"))
    return standing_in(Path() if pretrained else file.parent, model, pretrained=pretrained)


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
