"""Photos of a report: a picture of each, a layer per result, and measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

from vpltool.core.metrics import confusion, labels_at, scores
from vpltool.core.photos import describe_failure, read_photo
from vpltool.engine import panels
from vpltool.errors import VplError
from vpltool.formats import IGNORE, InputFolder, JsonObject, Photo, Workspace
from vpltool.formats.input_folders import probabilities_beside
from vpltool.lazy import F, Image, np, npt
from vpltool.pictures.overlays import cam_layer, label_layer
from vpltool.stages._truth import read_truth

Labels: TypeAlias = "npt.NDArray[np.uint8]"
Rgb: TypeAlias = "npt.NDArray[np.uint8]"

SPECK = 0.01
"""Smallest share of a photo at which a class counts as found in it; as in `eval --against tags`."""

_QUALITY = 82
"""Of the JPEGs."""


@dataclass(frozen=True)
class Layer:
    """A result that the report lays over the photos.

    `threshold` is where the scores of CAMs cut them, 0 without scores; `probabilities` are those of
    a prediction, if stored; `untagged` is whether photos without a tag may show anything.
    """

    column: panels.Column
    threshold: float = 0.0
    probabilities: InputFolder | None = None
    untagged: bool = False

    @property
    def is_maps(self) -> bool:
        """Whether it holds CAMs or probabilities, not labels."""
        source = self.column.source
        return source is not None and source.kind in ("cams", "probabilities")

    @property
    def knows_tags(self) -> bool:
        """Whether only classes among a photo's tags competed."""
        source = self.column.source
        return source is not None and (source.kind != "predictions"
                                       or bool(source.header.call.get("tags")))


def open_layer(workspace: Workspace, column: panels.Column, thresholds: Mapping[str, float]
               ) -> Layer:
    """Open a result as a layer; `thresholds` has the scored threshold of CAMs by name."""
    source = column.source
    if source is None or source.kind not in ("cams", "predictions"):
        return Layer(column)
    if source.kind == "cams":
        return Layer(column, thresholds.get(source.name, 0.0))
    return Layer(column, 0.0, probabilities_beside(workspace.path, source))


def draw_photo(workspace: Workspace, photo: Photo, number: int, layers: Sequence[Layer],
               side: int, *, truth: bool) -> tuple[JsonObject, dict[str, bytes]]:
    """Draw a photo and its layers, and measure them.

    Args:
        number: index of the photo in the report, which names its files, since ids are arbitrary.
        side: longest side of the pictures, in pixels.
        truth: whether the true mask is another layer, with which the others are compared.

    Returns:
        the record of the photo for the page, and its pictures by name. The record says why
        something cannot be drawn.
    """
    tags = workspace.indices_of(photo)
    record: JsonObject = {"id": photo.id, "tags": tags, "layers": []}
    path = workspace.image_path(photo)
    try:
        pixels = read_photo(path)
    except OSError as error:
        return record | {"why": describe_failure(path, error)}, {}
    small = Image.fromarray(pixels)
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    base = f"pictures/{number:06d}"
    files = {f"{base}/photo.jpg": _encoded(small, "JPEG", quality=_QUALITY)}
    record["picture"] = f"{base}/photo.jpg"
    true, why = _truth_of(workspace, photo, pixels.shape[:2]) if truth else (None, "")
    for index, layer in enumerate(layers):
        try:
            picture, measured = _draw_layer(workspace, layer, photo, small.size, true)
        except VplError as error:
            record["layers"].append({"why": error.message})
            continue
        files[f"{base}/{index}.png"] = _encoded(picture, "PNG")
        record["layers"].append({"picture": f"{base}/{index}.png", **measured})
    if true is not None:
        files[f"{base}/truth.png"] = _encoded(_label_picture(true, small.size), "PNG")
        record["layers"].append({"picture": f"{base}/truth.png", **_areas(true)})
    elif truth:
        record["layers"].append({"why": why})
    return record, files


def _truth_of(workspace: Workspace, photo: Photo, shape: tuple[int, ...]
              ) -> tuple[Labels | None, str]:
    """Return the true mask of a photo; or None, and why there is none."""
    if photo.mask is None:
        return None, "no true mask"
    try:
        return read_truth(workspace, photo, shape), ""
    except VplError as error:
        return None, error.message


def _draw_layer(workspace: Workspace, layer: Layer, photo: Photo, size: tuple[int, int],
                truth: Labels | None) -> tuple[Image.Image, JsonObject]:
    """Draw a layer of a photo at `size` (width, height) or smaller, and measure it."""
    column = layer.column
    column.check_file(photo.id)
    if layer.is_maps:
        return _draw_maps(workspace, layer, photo.id, truth)
    labels = column.read_labels(photo.id)
    measured = _areas(labels)
    if truth is not None:
        measured |= _iou(workspace, labels, truth, column)
    if not layer.knows_tags and (photo.tags or not layer.untagged):
        tags, found = {*workspace.indices_of(photo)}, {*measured["found"]}
        measured |= {"missed": sorted(tags - found), "extra": sorted(found - tags),
                     "apart": len(tags ^ found)}
    if layer.probabilities and layer.probabilities.path_of(photo.id).exists():
        likely = layer.probabilities.read_tensors(photo.id, "probabilities")["probabilities"]
        measured["unsure"] = round(1 - float(likely.float().amax(dim=0).mean()), 4)
    elif (labels == IGNORE).any():
        measured["unsure"] = round(float((labels == IGNORE).mean()), 4)
    return _label_picture(labels, size), measured


def _draw_maps(workspace: Workspace, layer: Layer, photo_id: str, truth: Labels | None
               ) -> tuple[Image.Image, JsonObject]:
    """Draw maps at their own size, which the browser scales; compute IoU at their threshold."""
    source = layer.column.source
    assert source is not None
    tensors = source.read_tensors(photo_id)
    classes = tensors["classes"].tolist()
    maps = tensors["cam" if source.kind == "cams" else "probabilities"].float()
    measured: JsonObject = {"classes": [index for index in classes if index]}
    if truth is not None and layer.threshold and classes:
        whole = F.interpolate(maps[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
        measured |= _iou(workspace, labels_at(whole.numpy(), classes, layer.threshold), truth,
                         layer.column)
    return cam_layer(maps.numpy(), classes), measured


def _iou(workspace: Workspace, labels: Labels, truth: Labels, column: panels.Column
         ) -> dict[str, float]:
    """Compute the mean IoU over the classes of the true mask."""
    classes = len(workspace.classes) + 1
    if labels.shape != truth.shape or (labels[labels != IGNORE] >= classes).any():
        raise VplError(f"{column.name} is of another size than the photo, or of other classes")
    found = scores(confusion(truth, labels, classes, workspace.ignore))
    return {"iou": round(found.miou, 4)} if found.present else {}


def _areas(labels: Labels) -> JsonObject:
    """Return the share of the photo that each label covers, largest first; and the classes."""
    counts = np.bincount(labels.ravel(), minlength=256) / max(labels.size, 1)
    order = sorted(counts.nonzero()[0].tolist(), key=lambda label: -counts[label])
    return {"areas": [[label, round(float(counts[label]), 4)] for label in order],
            "found": sorted(label for label in order
                            if label not in (0, IGNORE) and counts[label] >= SPECK)}


def _label_picture(labels: Labels, size: tuple[int, int]) -> Image.Image:
    small = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return label_layer(np.asarray(small))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()
