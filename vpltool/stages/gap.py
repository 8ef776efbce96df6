"""`gap`: the modality gap of prototypes, as a table, a file and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.core import aligned_space
from vpltool.core.gap import Gap, modality_gap
from vpltool.engine import gap_regions, models, reports
from vpltool.engine.features import open_features
from vpltool.engine.prototypes import (
    check_fits,
    check_one_space,
    find_prototypes,
    read_prototypes,
    space_of,
)
from vpltool.errors import VplError
from vpltool.formats import InputFolder, JsonObject, Workspace, identity_of_file, write_json
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import place
from vpltool.lazy import Tensor, torch
from vpltool.pictures import scatter
from vpltool.settings import Settings, setting
from vpltool.stage import Stage


@dataclass(frozen=True, kw_only=True)
class GapSettings(Settings):
    """Settings of `gap`."""

    prototypes: tuple[str, ...] = setting(
        (), "Prototypes: text, vision, shifted or a file; repeatable. Default: text, and vision if "
            "it exists.", metavar="NAME-OR-PATH")
    cams: str = setting("", "CAMs that mark the regions; default: text-refined, else text.",
                        metavar="NAME-OR-PATH")
    phi: float = setting(0.4, "Threshold of a region; a patch belongs to it where its CAM is the "
                              "strongest and reaches this.", low=0, high=1)
    features: Path | None = options.features()
    split: str = options.split("train")
    limit: int = options.limit()
    out: Path | None = options.out()


STAGE = Stage(order=91, panel="4. Scores and pictures", reads=("features", "prototypes", "cams"),
              writes=("gap",), settings=GapSettings)


def run(workspace: Workspace, settings: GapSettings) -> reports.Report:
    """Measure how far prototypes lie from the regions of their classes.

    It reports, per class and overall, the distance between the centroids (Liang et al. 2022), and
    the mean of 1 - cosine. Regions come from CAMs, never from true masks. The picture beside the
    scores shows the plane of the two principal axes; it needs matplotlib. Scores and picture are
    always recomputed.

    Example: vpltool gap --prototypes text --prototypes vision

    Next: vpltool shift-gap, or vpltool eval

    Args:
        workspace: where inputs are found and scores go.
        settings: which prototypes, and what marks the regions.

    Returns:
        the numbers of each set of prototypes and of each class.

    Raises:
        VplError: an input is missing or of another model, or no region reaches Φ.
    """
    models.check_words(workspace)
    measured = _measure(workspace, settings)
    report = _report(workspace, measured, settings.split)
    path = settings.out or place(workspace.path, "gap", "gap")
    picture = path.with_suffix(".png")

    write_json(path, report)
    try:
        scatter.check_matplotlib("the picture of the gap")
    except VplError as error:
        console.note(f"{error.message}: {error.hint}")
        # That of an earlier run shows other numbers.
        picture.unlink(missing_ok=True)
        return reports.Report(report, path, classes=workspace.classes)
    names = {index: workspace.class_name(index) for index in measured.owner.unique().tolist()}
    with atomic_path(picture) as temporary:
        scatter.draw_panels([_panel(measured)], names, temporary)
    return reports.Report(report, path, picture, classes=workspace.classes)


@dataclass(frozen=True)
class PrototypeSet:
    """Prototypes of one file: rows (rows, dim) and the class of each (rows,)."""

    name: str
    space: str
    content: str
    rows: Tensor
    index: Tensor


def _read_sets(workspace: Workspace, choices: Sequence[str] | None, features: InputFolder
               ) -> tuple[list[PrototypeSet], aligned_space.AlignedSpace | None]:
    """Read prototypes by NAME or path; none: text, and vision if it is there.

    Args:
        workspace: where names are looked for.
        choices: NAMEs or paths.
        features: what they will be compared with.

    Returns:
        the prototypes, and the map into the space that all of them lie in.

    Raises:
        VplError: one is not there, of other classes, another CLIP or another space, or two have one
            name.
    """
    if not choices:
        vision = find_prototypes(workspace.path, "vision")
        choices = ["text", "vision"] if vision.exists() else ["text"]
    sets: dict[str, PrototypeSet] = {}
    first = None
    for choice in choices:
        found = read_prototypes(workspace, choice, aligned=True)
        check_fits(features, found)
        first = first or found
        check_one_space(first, found)
        name = found.path.stem
        if name in sets:
            raise VplError(f"two of the prototypes are called `{name}`",
                           "name each once; files need distinct names")
        sets[name] = PrototypeSet(name, found.header.facts["space"], identity_of_file(found.path),
                                  found.rows, found.class_index)
    return list(sets.values()), space_of(first) if first else None


@dataclass(frozen=True)
class _Measured:
    """Region features (R, dim) and the class of each (R,); prototypes, and the gap of each set."""

    regions: gap_regions.Regions
    features: Tensor
    owner: Tensor
    sets: Sequence[PrototypeSet]
    gaps: Sequence[Gap]


def _measure(workspace: Workspace, settings: GapSettings) -> _Measured:
    """Gather the region features of all photos, and measure the gap of each set to them.

    Raises:
        VplError: an input is missing or of another model, or there is no region.
    """
    source = open_features(workspace, settings.features, settings.split)
    sets, space = _read_sets(workspace, settings.prototypes, source)
    regions = gap_regions.open_regions(workspace, source, settings.cams, settings.split,
                                       settings.phi, settings.limit, space)
    parts = list(regions.read())
    features = torch.cat([part for part, _ in parts])
    owner = torch.cat([classes for _, classes in parts])
    if not len(features):
        raise VplError(f"no CAM in {regions.maps.path} reaches `phi={regions.phi:g}`",
                       f"lower it: `phi={round(regions.phi / 2, 3)}`; or name other CAMs by "
                       "`cams='NAME'`")
    return _Measured(regions, features, owner, sets,
                     [modality_gap(item.rows, item.index, features, owner) for item in sets])


def panel(workspace: Workspace, settings: GapSettings) -> scatter.Panel:
    """Measure the gap and draw it as a panel of a larger picture; nothing is written.

    Args: those of `run`.

    Raises:
        VplError: as `run`.
    """
    return _panel(_measure(workspace, settings))


def _panel(measured: _Measured) -> scatter.Panel:
    """The picture's panel, see `gap_panel`, with the numbers below its title."""
    sets = measured.sets
    numbers = ",  ".join(f"{item.name} {value.centroid:.2f} / {value.cosine:.2f}"
                         for item, value in zip(sets, measured.gaps, strict=True))
    return scatter.gap_panel("Modality gap", f"distance of centroids / mean 1 - cos:  {numbers}",
                             measured.features, measured.owner,
                             [(item.name, item.space, item.rows, item.index) for item in sets])


def _report(workspace: Workspace, measured: _Measured, split: str) -> JsonObject:
    regions, sets, gaps = measured.regions, measured.sets, measured.gaps
    shown = {workspace.class_name(index): item for index, item in gaps[0].per_class.items()}
    report: JsonObject = {
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


def show(report: reports.Report, _values: Mapping[str, object]) -> str:
    """Format two columns for each set of prototypes, a line for each class, and one for all."""
    shown, sets = report["classes"], report["prototypes"]
    every = {"regions": sum(entry["regions"] for entry in shown.values()),
             "spread": report["spread"]}
    width = max(len(name) for name in (*report.classes, "all classes"))
    lines = [f"{'':{width}}  {'':>16}" + "".join(f"  {name:>16}" for name in sets),
             f"{'':{width}}   regions  spread" + "  centroid   1-cos" * len(sets)]
    for name in report.classes:
        cells = [item["classes"].get(name) for item in sets.values()]
        lines.append(f"{name:{width}}" + _cells(shown.get(name), "regions", "spread")
                     + "".join(_cells(cell, "centroid", "cosine") for cell in cells))
    lines.append(f"{'all classes':{width}}" + _cells(every, "regions", "spread")
                 + "".join(_cells(item, "centroid", "cosine") for item in sets.values()))
    lines.append(f"regions: cams/{report['cams']} on `{report['split']}` at phi "
                 f"{report['phi']:g}, {report['photos']} photos")
    return "\n".join([*lines, *map(str, report.paths)])


def _cells(entry: JsonObject | None, first: str, second: str) -> str:
    if entry is None:
        return f"  {'-':>8}  {'-':>6}"
    cell = entry[first] if first == "regions" else format(entry[first], ".3f")
    return f"  {cell:>8}  {entry[second]:6.3f}"
