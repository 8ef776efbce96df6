"""`vpltool shift-gap`: text prototypes moved along the modality gap (VPL, table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpltool import console
from vpltool.errors import VplError, check_choice
from vpltool.formats import (
    Header,
    InputFolder,
    Workspace,
    identity_of_file,
    open_workspace,
    write_tensors,
)
from vpltool.options import Limit, Out, Overwrite, Quiet, Split
from vpltool.stage import Stage
from vpltool.stages import _artifacts
from vpltool.stages._regions import Regions, open_features, open_regions

if TYPE_CHECKING:
    from torch import Tensor

STAGE = Stage(order=46, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",))


def shift_gap(
    ctx: typer.Context,
    share: Annotated[float, typer.Option(
        "--lambda", "--shift", help="Share of the gap: 1 the whole, so that the centroids "
                                    "coincide; 0 none; below 0 the other way.")] = 1.0,
    centroid: Annotated[str, typer.Option(
        help="Of what: pixels, all patches against all rows of the text; or regions of the CAMs "
             "against their classes' rows, as gap measures it.")] = "pixels",
    cams: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="With regions: the CAMs; default: text-refined, else text.",
    )] = "",
    phi: Annotated[float, typer.Option(
        min=0, max=1, help="With regions: a patch is a class's where its CAM is the strongest and "
                           "reaches this.")] = 0.4,
    text: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="Text prototypes.")] = "text",
    features: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Features of the split; default: features/SPLIT.")] = None,
    split: Split = "train",
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Move the text prototypes to where the photos' features are (Liang et al. 2022).

    The vector of the modality gap leads from the centroid of the text to that of the features. All
    rows move by it, and are put back on the sphere. Nothing is learned: a baseline for vision
    prototypes.

    Example: vpltool shift-gap --lambda 1

    Next: vpltool cam --prototypes shifted
    """
    console.set_quiet(quiet)
    check_choice("centroid", centroid, ("pixels", "regions"))
    if not math.isfinite(share):
        raise VplError(f"--lambda {share}: no share", "--lambda 1 moves by the whole gap")
    workspace = open_workspace(ctx.obj)
    source = open_features(workspace, features, split)
    path, text_header, vectors = _artifacts.read_prototypes(workspace, text)
    _artifacts.check_same_model(source.header.model, text_header.model,
                                f"{source.path} and {path}")
    options: dict[str, Any] = {"lambda": share, "centroid": centroid, "split": split}
    inputs = {"features": source.identity, "text": identity_of_file(path)}
    regions = None
    if centroid == "regions":
        regions = open_regions(workspace, source, cams, split, phi, limit)
        options["phi"] = phi
        inputs |= {"cams": regions.maps.identity, "tags": workspace.tags_identity(split)}
    if limit:
        options["limit"] = limit
    header = Header(kind="prototypes", command="shift-gap", options=options, inputs=inputs,
                    model=source.header.model)
    target = out or ctx.obj / "prototypes/shifted.safetensors"
    if not _artifacts.is_done(target, header, overwrite=overwrite):
        rows, index = vectors["prototypes"], vectors["class_index"]
        moved, distances = _shift(workspace, source, regions, rows, index, options)
        facts = {"space": "text shifted", "rows": text_header.facts["rows"],
                 "gap": {name: {"centroid": round(value, 5)}
                         for name, value in zip(("text", "shifted"), distances, strict=True)}}
        write_tensors(target, replace(header, facts=facts),
                      {"prototypes": moved, "class_index": index})
        console.note(f"distance of the centroids: text {distances[0]:.3f}, shifted and back on the "
                     f"sphere {distances[1]:.3f}")
    print(target)


def _shift(workspace: Workspace, features: InputFolder, regions: Regions | None, rows: Tensor,
           index: Tensor, options: dict[str, Any]) -> tuple[Tensor, tuple[float, float]]:
    """Give the moved rows, and the distance of the centroids before and after."""
    from vpltool.core.gap import feature_centroid, shift_along_gap

    if regions is None:
        ids = features.available(photo.id for photo in workspace.photos(
            options["split"], options.get("limit", 0)))
        centroid, _ = feature_centroid(_pixels(features, ids), groups=1)
        counted = index >= 0
    else:
        try:
            centroid, seen = feature_centroid(regions.read(), len(workspace.classes) + 1)
        except ValueError as error:
            raise VplError(f"no CAM in {regions.maps.path} reaches --phi {regions.phi:g}",
                           "lower --phi, or name other --cams") from error
        counted = seen[index]

    def distance(vectors: Tensor) -> float:
        return float((centroid - vectors[counted].mean(dim=0)).norm())

    moved = shift_along_gap(rows, centroid - rows[counted].mean(dim=0), options["lambda"])
    return moved, (distance(rows), distance(moved))


def _pixels(features: InputFolder, ids: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
    import torch

    with console.progress("read features", len(ids)) as advance:
        for key in ids:
            patches = features.read_tensors(key, "patches")["patches"].float()
            yield (torch.nn.functional.normalize(patches, dim=-1),
                   torch.zeros(len(patches), dtype=torch.long))
            advance()
