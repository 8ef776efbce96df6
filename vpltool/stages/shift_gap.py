"""`shift-gap`: text prototypes moved along the modality gap (VPL, table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.core.gap import feature_centroid, shift_along_gap
from vpltool.engine import headers, models, photo_work, prototypes
from vpltool.engine.opening import Opened
from vpltool.errors import VplError
from vpltool.formats import Workspace, kinds
from vpltool.lazy import F, Tensor, torch
from vpltool.settings import NoEffect, Stage, setting, warn_without_effect
from vpltool.stages import _phase_one

_ALL_PIXELS = NoEffect({"centroid": ("pixels",)}, "no CAM is read")


@dataclass(frozen=True, kw_only=True)
class ShiftGapSettings(options.Replaces):
    """Settings of `shift-gap`."""

    share: float = setting(1.0, "Share of the gap to move by; 1: all of it, so that the centroids "
                                "coincide; 0: none; below 0: the other way.", flag="--lambda",
                           aliases=["--shift"], source="Liang et al., section 5")
    centroid: str = setting(
        "pixels", "What the centroids are of; pixels: all patches against all rows of the text; "
                  "regions: those of the CAMs against their classes' rows, as gap measures it.",
        choices=("pixels", "regions"), source="VPL gives none")
    cams: str = setting("", "With regions: the CAMs; default: text-refined, else text.",
                        metavar="NAME-OR-PATH", record="never", no_effect=[_ALL_PIXELS],
                        reads="cams")
    phi: float = setting(0.4, "With regions: their threshold; a patch belongs to a class where its "
                              "CAM is the strongest and reaches this.", low=0, high=1,
                         source="VPL, table 6", no_effect=[_ALL_PIXELS])
    text: str = _phase_one.text()
    features: Path | None = options.features()
    split: str = options.split("train")
    limit: int = options.limit(record="changed")


STAGE = Stage(order=46, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",), settings=ShiftGapSettings)


def run(workspace: Workspace, settings: ShiftGapSettings) -> Path:
    """Shift the text prototypes towards the photos' features (Liang et al. 2022).

    The vector of the modality gap leads from the centroid of the text to that of the features. All
    prototypes are shifted by it and normalised again. Nothing is trained: this is a baseline for
    vision prototypes.

    Example: vpltool shift-gap --lambda 1

    Next: vpltool cam --prototypes shifted

    Raises:
        VplError: an input is missing or does not fit the others, or there is no region.
    """
    models.check_words(workspace)
    if not math.isfinite(settings.share):
        raise VplError(f"`share={settings.share}` is not a finite number",
                       "`share=1.0` moves by the whole gap")
    warn_without_effect(settings)
    opened = _phase_one.open_inputs(workspace, settings, "text", "cams")
    text = _phase_one.text_of(opened)
    tags = {"tags": workspace.tags_identity(settings.split)} if "cams" in opened.folders else {}
    header = opened.header_of_split("shift-gap", **tags)
    target = settings.out or kinds.result_path(workspace.path, "prototypes", "shifted")
    if headers.check_file(target, header, settings):
        return target
    centroid, counted = _centroid(opened, text, settings.phi)
    middle = text.rows[counted].mean(dim=0)
    moved = shift_along_gap(text.rows, centroid - middle, settings.share)
    before, after = (float((centroid - rows).norm())
                     for rows in (middle, moved[counted].mean(dim=0)))
    facts = {"space": "text shifted", "rows": text.header.facts["rows"],
             "gap": {"text": {"centroid": round(before, 5)},
                     "shifted": {"centroid": round(after, 5)}}}
    prototypes.write_prototypes(
        target, header, {"prototypes": moved, "class_index": text.class_index}, facts, text)
    console.note(f"distance of the centroids: text {before:.3f}, shifted and back on the sphere "
                 f"{after:.3f}")
    return target


def _centroid(opened: Opened, text: prototypes.Prototypes, phi: float) -> tuple[Tensor, Tensor]:
    """Return the centroid of the features (dim,), and which text rows count (rows,) bool."""
    ids, space = opened.available().ids, prototypes.space_of(text)
    if "cams" in opened.folders:
        regions = _phase_one.read_regions(opened, ids, phi, space)
        centroid, present = feature_centroid([regions], len(opened.workspace.classes) + 1)
        return centroid, present[text.class_index]

    def pixels() -> Iterator[tuple[Tensor, Tensor]]:
        for key in photo_work.tracked("read features", ids, len(ids)):
            patches = prototypes.read_patches(opened.features, key, space).float()
            yield F.normalize(patches, dim=-1), torch.zeros(len(patches), dtype=torch.long)

    return feature_centroid(pixels(), groups=1)[0], text.class_index >= 0
