"""What methods are given, by kind.

Methods of `estimators` are given `Pixels`: those of a whole split, with their seed labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import formats
from vpltool.errors import VplError
from vpltool.lazy import Tensor, np, npt, torch

if TYPE_CHECKING:
    from vpltool.clip.encoders import Encoder
    from vpltool.core.phase_one import Pixels as Pixels
    from vpltool.core.proposals import Proposals
    from vpltool.core.segmenter import SegmenterNetwork
    from vpltool.core.vit import Head
    from vpltool.formats import Header, OutputFolder, Photo, Workspace

    Paint = Callable[[Workspace, Sequence[Photo]], tuple[list[Photo], list[OutputFolder]]]


@dataclass(frozen=True)
class SourceRequest:
    """What is settled before a data set is read, for a method of `sources`.

    Args:
        classes: class names in index order, if a class file or the workspace names them; empty:
            the data set's own, or those of its tags.
        overwrite: whether files that the method makes in the workspace are recomputed.
        captioned: whether captions are given; then neither tags nor classes are needed.
    """

    classes: tuple[str, ...] = ()
    overwrite: bool = False
    captioned: bool = False


@dataclass(frozen=True)
class Source:
    """A data set that a method of `sources` has read.

    Args:
        name: of the data set.
        root: folder that the photos' paths are relative to.
        photos: with tags and splits, and the paths of their true masks, which are not opened.
        classes: class names in index order.
        background: words for what is no class.
        from_tags: whether the classes are those of the tags: the names that an earlier workspace
            has come first then, and new ones after them.
        remarks: what may surprise the user later, a line each.
        paint: makes files that belong to the workspace, such as true masks of COCO's instances,
            just before the workspace is written; gives the photos with what it made, and the
            folders, not finished.
        edited: names files that have changed since `paint` made photos of them.
        file_of: file or folder by id, of photos that are parts of one, such as tiles and frames;
            of copies, the id of the first one.
        unlisted: whether photos without a tag may be some that nobody has looked at.
    """

    name: str
    root: Path
    photos: Sequence[Photo]
    classes: tuple[str, ...]
    background: tuple[str, ...]
    from_tags: bool = False
    remarks: Sequence[str] = ()
    paint: Paint | None = None
    edited: Callable[[], Sequence[str]] = tuple
    file_of: Mapping[str, str] = field(default_factory=dict)
    unlisted: bool = False


@dataclass(frozen=True)
class Predictions:
    """Label images of a split's photos, for a method of `exports`.

    Args:
        workspace: names the classes.
        name: of the predictions.
        photos: those of the split; each has a label image.
        each: yields each photo with its labels (H, W) uint8 at the photo's size, 255 where nothing
            is said; shows the progress. It raises a VplError where labels are damaged, of another
            size, or no class.
        failed: id to reason, of photos that could not be written; a method adds to it, and
            `export` names them at the end.
    """

    workspace: Workspace
    name: str
    photos: Sequence[Photo]
    each: Callable[[], Iterator[tuple[Photo, npt.NDArray[np.uint8]]]]
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictedScene:
    """Labels of a GeoTIFF, for a method of `exports` whose file says EXPORTS = "scene".

    Args:
        path: of the GeoTIFF of labels.
        classes: names of the classes, the first is label 1.
    """

    path: Path
    classes: tuple[str, ...]


@dataclass(frozen=True)
class TrainedSegmenter:
    """A trained network with its frozen encoder.

    A method of `exports` whose file says EXPORTS = "segmenter" is given one.

    Args:
        path: of the decoder, or of the bundle.
        header: that of the file.
        network: in evaluation mode, on the CPU unless a device was asked for.
        encoder: the vision tower, with how photos are normalised for it.
        classes: names of the classes, the first is label 1.
        photos: some of those that it was trained on, on which an export is calibrated.
        held: some that it was not trained on, on which an export is measured; may be empty.
        about: facts for its card: its training data, scores and calibration.
    """

    path: Path
    header: Header
    network: SegmenterNetwork
    encoder: Encoder
    classes: tuple[str, ...]
    photos: Sequence[Path] = ()
    held: Sequence[Path] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the file, without suffix."""
        return self.path.stem

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the file."""
        return formats.identity_of_file(self.path)


@dataclass(frozen=True)
class EmbeddingBatch:
    """Photos of one grid, for a method of `embeddings`. Tensors are on the device.

    Args:
        ids: of the photos (B).
        grid: (h, w), in patches.
        tensors: those of the features that the method reads, stacked; see `CamBatch`.
        head: CLIP's last block and projection, if the method reads `head`.
    """

    ids: Sequence[str]
    grid: tuple[int, int]
    tensors: Mapping[str, Tensor]
    head: Head | None = None


@dataclass(frozen=True)
class CamBatch:
    """Photos of one grid, for a method of `cams`. Tensors are on the device.

    Args:
        ids: of the photos (B).
        grid: (h, w), in patches.
        tensors: those of the features that the method reads, stacked: `tokens` (B, 1+h·w, width),
            `patches` (B, h·w, dim), `attention` (B, h·w, h·w), `attentions` (B, blocks, h·w, h·w),
            `layers` (B, layers, h·w, width); those of a second encoder, resampled to the grid:
            `second_patches` (B, h·w, dim'), `second_attention` (B, h·w, h·w).
        present: class indices of each photo's tags (K_i,), on the host.
        prototypes: L2-normed rows (rows, dim).
        class_index: class of each row (rows,), 0 is the background.
        of_rows: further tensors of the rows: `context_of` (rows,), the class whose context a row
            describes, 0 for none; `photo_of` (rows,), the number of its photo, -1 for none; `scale`
            and `bias` (rows,): a patch x scores scale · (x · row) + bias.
        row_photos: ids of the photos that `photo_of` numbers.
        head: CLIP's last block and projection, if the method reads `head`.
        photos: RGB (H, W, 3) of each photo, if the method reads `photo`.
        captions: those of each photo, if the method reads `captions`.
    """

    ids: Sequence[str]
    grid: tuple[int, int]
    tensors: Mapping[str, Tensor]
    present: Sequence[Tensor]
    prototypes: Tensor
    class_index: Tensor
    of_rows: Mapping[str, Tensor] = field(default_factory=dict)
    row_photos: Sequence[str] = ()
    head: Head | None = None
    photos: Sequence[npt.NDArray[np.uint8]] = ()
    captions: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True)
class PhotoMaps:
    """A photo with its maps, for a method of `refiners`. Tensors are on the device.

    Args:
        id: of the photo.
        cams: maps in [0, 1] (K, h, w).
        classes: their class indices (K,).
        tensors: those of the features that the method reads: `attention` (h·w, h·w), `attentions`
            (blocks, h·w, h·w), `patches` (h·w, dim), `tokens` (1+h·w, width), `layers` (layers,
            h·w, width); those of a second encoder, see `CamBatch`.
        photo: RGB (H, W, 3), if the method reads `photo`.
        captions: if the method reads `captions`.
        prototypes: L2-normed rows (rows, dim), if the method reads `prototypes`.
        class_index: class of each row (rows,), 0 is the background; None without prototypes.
        of_rows: see `CamBatch`.
        row_photos: see `CamBatch`.
        decoder: a trained network, if the method reads `decoder`; `layers` are those that it reads.
    """

    id: str
    cams: Tensor
    classes: Tensor
    tensors: Mapping[str, Tensor]
    photo: npt.NDArray[np.uint8] | None = None
    captions: tuple[str, ...] = ()
    prototypes: Tensor | None = None
    class_index: Tensor | None = None
    of_rows: Mapping[str, Tensor] = field(default_factory=dict)
    row_photos: Sequence[str] = ()
    decoder: SegmenterNetwork | None = None


@dataclass(frozen=True)
class ScoredPhoto:
    """A photo with the scores of its labels, for a method of `label_refiners`.

    Args:
        photo: RGB (H, W, 3) uint8.
        scores: of the labels that are present (L, H, W) float32, in [0, 1].
        names: of these labels; that of the background is empty.
        proposals: of the size of the scores, if the method reads `proposals`.
    """

    photo: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    names: tuple[str, ...] = ()
    proposals: Proposals | None = None


@dataclass(frozen=True)
class ProposalRequest:
    """Which photos a method of `proposers` makes proposals of.

    Args:
        jobs: id and path of each.
        device: where networks run.
        root: folder of the photos.
        photos: name to photo of the whole workspace, under every name that a tool may give it.
        classes: class names in index order.
    """

    jobs: Sequence[tuple[str, Path]]
    device: torch.device
    root: Path = field(default_factory=Path)
    photos: Mapping[str, Photo] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmenterParts:
    """What a network is built of, for a method of `segmenters`.

    Its `build(parts, settings)` returns a `vpltool.core.segmenter.SegmenterNetwork`, the interface
    for training and `predict`. Its `rebuild(config)` returns an empty one, for a state dict; it
    runs on torch's device `meta`, where tensors have no values. If it defines `fit(network, photos,
    settings, total)`, the network is not trained in steps: `fit` computes its parameters in one
    pass over `LabelledPhoto`s. Each of several processes has photos of its own, and `total` adds up
    a tensor over all of them.

    Args:
        layers: indices of the CLIP blocks whose output is read; empty if the method reads none.
        input_width: width of these outputs; 0 if none are read.
        prototypes: L2-normed rows (rows, dim), the pixel classifier.
        class_index: class of each row (rows,), 0 is the background.
    """

    layers: tuple[int, ...]
    input_width: int
    prototypes: Tensor
    class_index: Tensor


@dataclass(frozen=True)
class LabelledPhoto:
    """A whole photo with the labels of its mask, for `fit` of a method of `segmenters`.

    Args:
        layers: the frozen layers that the network reads (L, h·w, width) float32, or None.
        patches: L2-normed patch embeddings (h·w, dim), or None.
        grid: (h, w).
        labels: 4×4 a patch (4h, 4w) uint8; 255 is not labelled.
    """

    layers: Tensor | None
    patches: Tensor | None
    grid: tuple[int, int]
    labels: Tensor


def side_of(header: Header, given: int | None = None) -> int:
    """Return the side to which longer photos are scaled down for a segmenter; 0: never.

    It is `given` by the user, or that of training, or 1,024 as in `extract`.
    """
    return int(header.facts.get("max_side", 1024)) if given is None else given


AUTO = "auto"

AUTO_SIDE = 512
"""Side of a tile with `tile='auto'`, if no training has fixed one: that of `own-photos`."""


def parse_tile(choice: str, auto: int) -> tuple[int, int]:
    """Parse the setting `tile`: the side of a tile, and the length above which photos are cut.

    Both are the given number of pixels; the setting `auto` means `auto` pixels, and three times
    that. Raises a VplError for any other value.
    """
    if choice == AUTO:
        return auto, 3 * auto
    if not choice.isdecimal() or not int(choice):
        raise VplError(f"`tile={choice!r}` is neither a number of pixels nor auto",
                       "for example `tile='448'`, or `tile='auto'`")
    return int(choice), int(choice)
