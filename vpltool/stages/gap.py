"""`vpltool gap`: the modality gap of prototypes, as a table, a file and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Workspace, identity_of_file, open_workspace, write_json
from vpltool.formats.storage import atomic_path
from vpltool.options import Json, Limit, Out, Quiet, Split
from vpltool.stage import Stage
from vpltool.stages import _artifacts
from vpltool.stages._regions import Regions, open_features, open_regions

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.gap import Gap
    from vpltool.pictures.scatter import Panel

STAGE = Stage(order=91, panel="4. Scores and pictures", reads=("features", "prototypes", "cams"),
              writes=("gap",))

def gap(
    ctx: typer.Context,
    prototypes: Annotated[list[str] | None, typer.Option(
        metavar="NAME-OR-PATH", help="text, vision, shifted, or a file of prototypes; may be given "
                                     "several times. Default: text, and vision if there is one.",
    )] = None,
    cams: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="CAMs that mark the regions; default: text-refined, else "
                                     "text.")] = "",
    phi: Annotated[float, typer.Option(
        min=0, max=1, help="A patch is in a class's region where its CAM is the strongest and "
                           "reaches this.")] = 0.4,
    features: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Features of the split; default: features/SPLIT.")] = None,
    split: Split = "train",
    json: Json = False,
    limit: Limit = 0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure how far prototypes lie from the regions of their classes.

    Of each class and of all: the distance of the centroids (Liang et al. 2022), and the mean of
    1 - cosine. CAMs say where the regions are, never true masks. The picture beside the scores
    shows the plane of the two principal axes. Scores and picture are always made anew.

    Example: vpltool gap --prototypes text --prototypes vision

    Next: vpltool shift-gap, or vpltool eval
    """
    console.set_quiet(quiet)
    workspace = open_workspace(ctx.obj)
    source = open_features(workspace, features, split)
    sets = read_sets(workspace, prototypes, source.header.model, str(source.path))
    regions = open_regions(workspace, source, cams, split, phi, limit)
    features_of, owner, gaps = measure(regions, sets)
    report = _report(workspace, regions, sets, gaps, split)
    path = out or ctx.obj / "scores/gap.json"
    picture = path.with_suffix(".png")

    from vpltool.pictures.scatter import draw_panels

    panel = panel_of(features_of, owner, sets, gaps)
    names = {index: workspace.class_name(index) for index in owner.unique().tolist()}
    with atomic_path(picture) as temporary:
        draw_panels([panel], names).save(temporary, format="PNG")
    write_json(path, report)
    if json:
        import json as spelling

        print(spelling.dumps(report))
    else:
        _print_table(workspace.classes, report)
        print(path)
        print(picture)


@dataclass(frozen=True)
class PrototypeSet:
    """Prototypes of one file: rows (rows, dim) and the class of each (rows,)."""

    name: str
    space: str
    content: str
    rows: Tensor
    index: Tensor


def read_sets(workspace: Workspace, choices: list[str] | None, model: Mapping[str, str],
              features: str) -> list[PrototypeSet]:
    """Read prototypes by NAME or path; `None`: text, and vision if it is there.

    Args:
        workspace: where names are looked for.
        choices: NAMEs or paths.
        model: CLIP of the features that they will be compared with.
        features: where these are, for the message.

    Raises:
        VplError: one is not there, of other classes or another CLIP, or two have one name.
    """
    if not choices:
        vision = _artifacts.find_prototypes(workspace.path, "vision")
        choices = ["text", "vision"] if vision.exists() else ["text"]
    sets: dict[str, PrototypeSet] = {}
    for choice in choices:
        path, header, tensors = _artifacts.read_prototypes(workspace, choice)
        _artifacts.check_same_model(model, header.model, f"{features} and {path}")
        if path.stem in sets:
            raise VplError(f"two of the prototypes are called `{path.stem}`",
                           "give each once; files need names of their own")
        sets[path.stem] = PrototypeSet(path.stem, header.facts["space"], identity_of_file(path),
                                       tensors["prototypes"], tensors["class_index"])
    return list(sets.values())


def measure(regions: Regions, sets: Sequence[PrototypeSet]) -> tuple[Tensor, Tensor, list[Gap]]:
    """Gather the region features of all photos, and measure the gap of each set to them.

    Returns:
        region features (R, dim), their classes (R,), and a gap for each set.

    Raises:
        VplError: there is no region.
    """
    import torch

    from vpltool.core.gap import modality_gap

    parts = list(regions.read())
    features = torch.cat([part for part, _ in parts])
    owner = torch.cat([classes for _, classes in parts])
    if not len(features):
        raise VplError(f"no CAM in {regions.maps.path} reaches --phi {regions.phi:g}",
                       "lower --phi, or name other --cams")
    return features, owner, [modality_gap(item.rows, item.index, features, owner)
                             for item in sets]


def panel_of(features: Tensor, owner: Tensor, sets: Sequence[PrototypeSet], gaps: Sequence[Gap]
             ) -> Panel:
    """The picture's panel, see `gap_panel`, with the numbers below its title."""
    from vpltool.pictures.scatter import gap_panel

    numbers = ",  ".join(f"{item.name} {value.centroid:.2f} / {value.cosine:.2f}"
                         for item, value in zip(sets, gaps, strict=True))
    return gap_panel("Modality gap", f"distance of centroids / mean 1 - cos:  {numbers}",
                     features, owner, [(item.name, item.space, item.rows, item.index)
                                       for item in sets])


def _report(workspace: Workspace, regions: Regions, sets: Sequence[PrototypeSet],
            gaps: Sequence[Gap], split: str) -> dict[str, Any]:
    shown = {workspace.class_name(index): item for index, item in gaps[0].per_class.items()}
    report: dict[str, Any] = {
        "kind": "gap", "split": split, "photos": len(regions.ids), "cams": regions.maps.name,
        "phi": regions.phi, "features": regions.features.identity, "maps": regions.maps.identity,
        "spread": round(gaps[0].spread, 6),
        "classes": {name: {"regions": item.regions, "spread": round(item.spread, 6)}
                    for name, item in shown.items()},
        "prototypes": {}}
    for item, value in zip(sets, gaps, strict=True):
        report["prototypes"][item.name] = {
            "space": item.space, "content": item.content, "centroid": round(value.centroid, 6),
            "cosine": round(value.cosine, 6),
            "classes": {workspace.class_name(index): {"centroid": round(one.centroid, 6),
                                                      "cosine": round(one.cosine, 6)}
                        for index, one in value.per_class.items()}}
    return report


def _print_table(classes: Sequence[str], report: dict[str, Any]) -> None:
    """Print two columns for each set of prototypes, a line for each class, and one for all."""
    shown, sets = report["classes"], report["prototypes"]
    every = {"regions": sum(entry["regions"] for entry in shown.values()),
             "spread": report["spread"]}
    width = max(len(name) for name in (*classes, "all classes"))
    print(f"{'':{width}}  {'':>16}" + "".join(f"  {name:>16}" for name in sets))
    print(f"{'':{width}}   regions  spread" + "  centroid   1-cos" * len(sets))
    for name in classes:
        cells = [item["classes"].get(name) for item in sets.values()]
        print(f"{name:{width}}" + _cells(shown.get(name), "regions", "spread")
              + "".join(_cells(cell, "centroid", "cosine") for cell in cells))
    print(f"{'all classes':{width}}" + _cells(every, "regions", "spread")
          + "".join(_cells(item, "centroid", "cosine") for item in sets.values()))
    print(f"regions: cams/{report['cams']} on `{report['split']}` at phi {report['phi']:g}, "
          f"{report['photos']} photos")


def _cells(entry: dict[str, Any] | None, first: str, second: str) -> str:
    if entry is None:
        return f"  {'-':>8}  {'-':>6}"
    spelled = entry[first] if first == "regions" else format(entry[first], ".3f")
    return f"  {spelled:>8}  {entry[second]:6.3f}"
