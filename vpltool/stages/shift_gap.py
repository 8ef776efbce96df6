"""`shift-gap`: text prototypes moved along the modality gap (VPL, table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.core import aligned_space
from vpltool.core.gap import feature_centroid, shift_along_gap
from vpltool.engine import gap_regions, headers, models, photos, prototypes
from vpltool.engine.features import open_features
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Workspace
from vpltool.formats.kinds import place
from vpltool.lazy import Tensor, torch
from vpltool.settings import NoEffect, setting, warn_without_effect
from vpltool.stage import Stage
from vpltool.stages import _phase_one

_ALL_PIXELS = NoEffect({"centroid": ("pixels",)}, "no CAM is read")


@dataclass(frozen=True, kw_only=True)
class ShiftGapSettings(options.Replaces):
    """Settings of `shift-gap`."""

    share: float = setting(
        1.0, "Share of the gap to move by; 1: all of it, so that the centroids coincide; 0: none; "
             "below 0: the other way.", flag="--lambda", aliases=["--shift"],
        source="Liang et al., section 5")
    centroid: str = setting(
        "pixels", "What the centroids are of; pixels: all patches against all rows of the text; "
                  "regions: those of the CAMs against their classes' rows, as gap measures it.",
        choices=("pixels", "regions"), source="VPL gives none")
    cams: str = setting("", "With regions: the CAMs; default: text-refined, else text.",
                        metavar="NAME-OR-PATH", record="never", no_effect=[_ALL_PIXELS])
    phi: float = setting(
        0.4, "With regions: their threshold; a patch belongs to a class where its CAM is the "
             "strongest and reaches this.",
        low=0, high=1, source="VPL, table 6", no_effect=[_ALL_PIXELS])
    text: str = _phase_one.text()
    features: Path | None = options.features()
    split: str = options.split("train")
    limit: int = options.limit("changed")


STAGE = Stage(order=46, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",), settings=ShiftGapSettings)


def run(workspace: Workspace, settings: ShiftGapSettings) -> Path:
    """Shift the text prototypes towards the photos' features (Liang et al. 2022).

    The vector of the modality gap leads from the centroid of the text to that of the features. All
    prototypes are shifted by it and normalised again. Nothing is trained: this is a baseline for
    vision prototypes.

    Example: vpltool shift-gap --lambda 1

    Next: vpltool cam --prototypes shifted

    Args:
        workspace: where inputs are found and outputs go.
        settings: how far, and between which centroids.

    Returns:
        the file of moved prototypes.

    Raises:
        VplError: an input is missing or does not fit the others, or there is no region.
    """
    models.check_words(workspace)
    if not math.isfinite(settings.share):
        raise VplError(f"`share={settings.share}` is not a finite number",
                       "`share=1.0` moves by the whole gap")
    warn_without_effect(settings)
    features = open_features(workspace, settings.features, settings.split)
    text = _phase_one.read_text(workspace, settings.text, features)
    inputs: dict[str, InputFolder | str] = {}
    regions = None
    if settings.centroid == "regions":
        regions = gap_regions.open_regions(workspace, features, settings.cams, settings.split,
                                           settings.phi, settings.limit, prototypes.space_of(text))
        inputs = {"cams": regions.maps, "tags": workspace.tags_identity(settings.split)}
    header = prototypes.split_header(workspace, "shift-gap", settings, features, text=text,
                                     **inputs)
    target = settings.out or place(workspace.path, "prototypes", "shifted")
    if not headers.check_file(target, header, settings):
        centroid, counted = _centroid(workspace, features, regions, text, settings)
        moved, distances = _shift(text.rows, centroid, counted, settings.share)
        facts = {"space": "text shifted", "rows": text.header.facts["rows"],
                 "gap": {name: {"centroid": round(value, 5)}
                         for name, value in zip(("text", "shifted"), distances, strict=True)}}
        rows = {"prototypes": moved, "class_index": text.class_index}
        prototypes.write_prototypes(target, header, rows, facts, text)
        console.note(f"distance of the centroids: text {distances[0]:.3f}, shifted and back on the "
                     f"sphere {distances[1]:.3f}")
    return target


def _centroid(workspace: Workspace, features: InputFolder, regions: gap_regions.Regions | None,
              text: prototypes.Prototypes, settings: ShiftGapSettings) -> tuple[Tensor, Tensor]:
    """Give the centroid of the features (dim,), and which rows of the text count (rows,) bool.

    Raises:
        VplError: there is no region.
    """
    if regions is None:
        ids = photos.photos_with(workspace, settings.split, settings.limit, features).ids
        centroid, _ = feature_centroid(_pixels(features, ids, prototypes.space_of(text)), groups=1)
        return centroid, text.class_index >= 0
    try:
        centroid, seen = feature_centroid(regions.read(), len(workspace.classes) + 1)
    except ValueError as error:
        raise VplError(f"no CAM in {regions.maps.path} reaches `phi={regions.phi}`",
                       f"lower it: `phi={round(regions.phi / 2, 3)}`; or name other CAMs by "
                       "`cams='NAME'`") from error
    return centroid, seen[text.class_index]


def _shift(rows: Tensor, centroid: Tensor, counted: Tensor, share: float
           ) -> tuple[Tensor, tuple[float, float]]:
    """Give the moved rows, and the distance of the centroids before and after."""
    def distance(vectors: Tensor) -> float:
        return float((centroid - vectors[counted].mean(dim=0)).norm())

    moved = shift_along_gap(rows, centroid - rows[counted].mean(dim=0), share)
    return moved, (distance(rows), distance(moved))


def _pixels(features: InputFolder, ids: Sequence[str], space: aligned_space.AlignedSpace | None
            ) -> Iterator[tuple[Tensor, Tensor]]:
    with console.progress("read features", len(ids)) as advance:
        for key in ids:
            patches = prototypes.read_patches(features, key, space).float()
            yield (torch.nn.functional.normalize(patches, dim=-1),
                   torch.zeros(len(patches), dtype=torch.long))
            advance()
