"""`gap`: the modality gap of prototypes, as a table, a file and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.core.gap import Gap, modality_gap
from vpltool.engine import models, prototypes, reports
from vpltool.errors import VplError
from vpltool.formats import InputFolder, JsonObject, Workspace, atomic, identity_of_file, write_json
from vpltool.formats.kinds import result_path
from vpltool.lazy import Tensor
from vpltool.pictures import scatter
from vpltool.settings import Settings, Stage, setting
from vpltool.stages import _phase_one


@dataclass(frozen=True, kw_only=True)
class GapSettings(Settings):
    """Settings of `gap`."""

    prototypes: tuple[str, ...] = setting(
        (), "Prototypes: text, vision, shifted or a file; repeatable. Default: text, and vision if "
            "it exists.", metavar="NAME-OR-PATH")
    cams: str = setting("", "CAMs that mark the regions; default: text-refined, else text.",
                        metavar="NAME-OR-PATH", reads="cams")
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

    Returns:
        the numbers of each set of prototypes and of each class.

    Raises:
        VplError: an input is missing or of another model, or no region reaches Φ.
    """
    models.check_words(workspace)
    measured = _measure(workspace, settings)
    report = _report(workspace, measured, settings)
    path = settings.out or result_path(workspace.path, "gap", "gap")
    picture = path.with_suffix(".png")

    write_json(path, report)
    try:
        scatter.check_matplotlib("the picture of the gap")
    except VplError as error:
        console.note(f"{error.message}: {error.hint}")
        # An earlier picture shows other numbers.
        picture.unlink(missing_ok=True)
        return reports.Report(report, path, classes=workspace.classes)
    names = {index: workspace.class_name(index) for index in measured.owner.unique().tolist()}
    with atomic.atomic_path(picture) as temporary:
        scatter.draw_panels([_panel(measured)], names, temporary)
    return reports.Report(report, path, picture, classes=workspace.classes)


@dataclass(frozen=True)
class _Measured:
    """Regions of photos, with features (R, dim) and classes `owner` (R,), and the gap of each set
    of prototypes to them, by name."""

    source: InputFolder
    maps: InputFolder
    photos: int
    features: Tensor
    owner: Tensor
    gaps: Mapping[str, tuple[prototypes.Prototypes, Gap]]


def _measure(workspace: Workspace, settings: GapSettings) -> _Measured:
    """Measure the gap between each set of prototypes and the regions of all photos."""
    opened = _phase_one.open_inputs(workspace, settings, "cams")
    sets = _read_sets(workspace, settings.prototypes, opened.features)
    ids = opened.available().ids
    features, owner = _phase_one.read_regions(opened, ids, settings.phi,
                                              prototypes.space_of(next(iter(sets.values()))))
    return _Measured(opened.features, opened.folders["cams"], len(ids), features, owner, {
        name: (found, modality_gap(found.rows, found.class_index, features, owner))
        for name, found in sets.items()})


def _read_sets(workspace: Workspace, choices: Sequence[str], features: InputFolder
               ) -> dict[str, prototypes.Prototypes]:
    """Read prototypes of one space by NAME or path; default: text, and vision if it exists."""
    if not choices:
        vision = prototypes.find_prototypes(workspace.path, "vision")
        choices = ["text", "vision"] if vision.exists() else ["text"]
    sets: dict[str, prototypes.Prototypes] = {}
    for choice in choices:
        found = prototypes.read_prototypes(workspace, choice, aligned=True)
        prototypes.check_fits(features, found)
        prototypes.check_one_space(next(iter(sets.values()), found), found)
        if found.path.stem in sets:
            raise VplError(f"two of the prototypes are called `{found.path.stem}`",
                           "name each once; files need distinct names")
        sets[found.path.stem] = found
    return sets


def panel(workspace: Workspace, settings: GapSettings) -> scatter.Panel:
    """Measure the gap as `run` does, and draw a panel of a larger picture; nothing is written."""
    return _panel(_measure(workspace, settings))


def _panel(measured: _Measured) -> scatter.Panel:
    """Draw the panel, see `gap_panel`, with the numbers below its title."""
    numbers = ",  ".join(f"{name} {gap.centroid:.2f} / {gap.cosine:.2f}"
                         for name, (_, gap) in measured.gaps.items())
    return scatter.gap_panel(
        "Modality gap", f"distance of centroids / mean 1 - cos:  {numbers}", measured.features,
        measured.owner, [(name, found.header.facts["space"], found.rows, found.class_index)
                         for name, (found, _) in measured.gaps.items()])


def _report(workspace: Workspace, measured: _Measured, settings: GapSettings) -> JsonObject:
    first = next(gap for _, gap in measured.gaps.values())
    return {
        "kind": "gap", "split": settings.split, "photos": measured.photos,
        "cams": measured.maps.name, "phi": settings.phi, "features": measured.source.identity,
        "maps": measured.maps.identity, "spread": round(first.spread, 6),
        "classes": {workspace.class_name(index): {"regions": item.regions,
                                                  "spread": round(item.spread, 6)}
                    for index, item in first.per_class.items()},
        "prototypes": {name: {
            "space": found.header.facts["space"], "content": identity_of_file(found.path),
            "centroid": round(gap.centroid, 6), "cosine": round(gap.cosine, 6),
            "classes": {workspace.class_name(index): {"centroid": round(one.centroid, 6),
                                                      "cosine": round(one.cosine, 6)}
                        for index, one in gap.per_class.items()}}
            for name, (found, gap) in measured.gaps.items()}}


def show(report: reports.Report, _values: Mapping[str, object]) -> str:
    """Format two columns per set of prototypes, a line per class, and one for all classes."""
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
    lines.append("all classes: regions are summed, spread and 1-cos averaged; centroid is the "
                 "distance between the centroids of all classes")
    lines.append(f"regions: cams/{report['cams']} on `{report['split']}` at phi "
                 f"{report['phi']:g}, {report['photos']} photos")
    return "\n".join([*lines, *map(str, report.paths)])


def _cells(entry: JsonObject | None, first: str, second: str) -> str:
    if entry is None:
        return f"  {'-':>8}  {'-':>6}"
    cell = entry[first] if first == "regions" else format(entry[first], ".3f")
    return f"  {cell:>8}  {entry[second]:6.3f}"
