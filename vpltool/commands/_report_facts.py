"""What a report says besides its photos: scores, curves, gaps, and what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpltool import __version__, console
from vpltool.core.agreement import agreement as score_agreement
from vpltool.errors import VplError
from vpltool.formats import Header, JsonObject, Workspace, read_json
from vpltool.formats.header import format_preset
from vpltool.formats.kinds import results_of
from vpltool.lazy import np
from vpltool.pictures.page import Chart, line_chart
from vpltool.state import Artifact, State, settings_shown

_COURSES = {
    "learn-prototypes": ("course", ("objective",)),
    "align": ("curve", ("loss of patches", "loss of text")),
    "train-decoder": ("curve", ("mask loss", "contrast", "affinity")),
}
"""Command to the fact of its header that is a course, and names of its columns after the step."""

_MOST_LINES = 6
"""Lines in one chart."""


def about(workspace: Workspace) -> list[tuple[str, str]]:
    """What the workspace is, a name and a value each."""
    photos = workspace.photos()
    splits: dict[str, int] = {}
    for photo in photos:
        for split in photo.splits:
            splits[split] = splits.get(split, 0) + 1
    return [
        ("Photos", f"{len(photos)}: " + ", ".join(f"{count} in {name}"
                                                  for name, count in splits.items())),
        ("Classes", str(len(workspace.classes))),
        *([("Encoder", workspace.main_encoder)] if workspace.encoder else []),
        *([("CLIP", workspace.model)] if workspace.has_words else []),
        ("With true masks", str(sum(photo.mask is not None for photo in photos))),
        ("Made with", f"vpltool {__version__}")]


def read_scores(work: Path) -> list[JsonObject]:
    """Scores that `eval` wrote, the lowest first on each split."""
    found = []
    for path in results_of(work, "scores"):
        content = _read(path)
        if content.get("kind") == "scores" and "iou" in content:
            found.append(_score(content, path))
    titles = [(entry["title"], entry["split"]) for entry in found]
    for entry in found:
        if titles.count((entry["title"], entry["split"])) > 1:
            entry["title"] += f" ({entry['file']})"
    return sorted(found, key=lambda entry: (entry["split"], entry["miou"]))


def _read(path: Path) -> JsonObject:
    try:
        return read_json(path, "`eval()`")
    except VplError as error:
        console.warn(f"{path.name} is skipped: {error.message}")
        return {}


def _score(content: Mapping[str, Any], path: Path) -> JsonObject:
    foreground = [value for name, value in content["iou"].items()
                  if name != "background" and value is not None]
    cut = content.get("threshold")
    made, scored = (content.get(key) or {} for key in ("made_under", "scored_under"))
    preset = format_preset(made) + ("" if made == scored else f", scored {format_preset(scored)}")
    return {
        "title": content["what"], "what": content["what"], "file": path.stem,
        "split": content["split"], "photos": content["photos"], "iou": content["iou"],
        "miou": content["miou"], "accuracy": content["accuracy"],
        "foreground": sum(foreground) / max(len(foreground), 1),
        "confusion": content.get("confusion", []), "left_out": content.get("photos_left_out", 0),
        "cut": f"{cut:g} ({content.get('threshold_chosen_by', '')})" if cut else "",
        "threshold": cut or 0.0, "sweep": content.get("sweep", {}), "preset": preset}


def thresholds(scores: Sequence[Mapping[str, Any]], split: str) -> dict[str, float]:
    """Name of CAMs to where their scores on a split cut them."""
    return {score["what"].removeprefix("cams-"): score["threshold"]
            for score in scores if score["split"] == split and score["threshold"]}


def artifacts(state: State) -> list[JsonObject]:
    """What is in the workspace, from what, and whether it is up to date."""
    return [{"name": artifact.name, "command": artifact.header.command,
             "settings": settings_shown(artifact.header),
             "preset": format_preset(artifact.header.preset) if artifact.header.preset else "",
             "sources": sorted(set(artifact.header.sources.values())),
             "stale": state.stale(artifact), "failed": len(artifact.failed)}
            for artifact in state.in_order]


def charts(made: Sequence[Artifact], scores: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Courses of phase 1 and of trainings; mIoU of CAMs at every threshold."""
    found = [chart for artifact in made
             if (chart := _course(artifact.name, artifact.header)) is not None]
    swept = [score for score in scores if score["sweep"]]
    for split in sorted({score["split"] for score in swept}):
        own = [score for score in swept if score["split"] == split]
        for start in range(0, len(own), _MOST_LINES):
            part = own[start:start + _MOST_LINES]
            steps = list(part[0]["sweep"])
            found.append(line_chart(
                f"mIoU on {split}, by where CAMs are cut", "threshold", [float(x) for x in steps],
                {score["title"]: [100 * score["sweep"].get(step, float("nan")) for step in steps]
                 for score in part}))
    return found


def _course(name: str, header: Header) -> Chart | None:
    key, columns = _COURSES.get(header.command.split()[0], ("", ()))
    rows: list[list[float]] = header.facts.get(key) or []
    lines = {column: [float(row[index]) for row in rows]
             for index, column in enumerate(columns, 1) if rows and len(rows[0]) > index}
    # A loss without weight is 0 all along.
    lines = {column: values for column, values in lines.items() if any(values)}
    if len(rows) < 2 or not lines:
        return None
    return line_chart(f"{name} ({header.command})", "step", list(_steps(rows)), lines)


def _steps(rows: Sequence[Sequence[float]]) -> Iterator[float]:
    """Steps of a course, counted on where a round begins at 0 again."""
    before, last = 0.0, 0.0
    for row in rows:
        if row[0] < last:
            before += last + 1
        last = row[0]
        yield before + last


def gaps(work: Path) -> list[JsonObject]:
    """Gaps that `gap` measured: numbers of each set of prototypes, and where the picture lies."""
    found = []
    for path in results_of(work, "scores"):
        content = _read(path)
        if content.get("kind") != "gap":
            continue
        rows = [{"name": name, "space": entry["space"], "centroid": f"{entry['centroid']:.3f}",
                 "cosine": f"{entry['cosine']:.3f}"}
                for name, entry in content["prototypes"].items()]
        numbers = "; ".join(f"{row['name']} {row['centroid']}" for row in rows)
        picture = path.with_suffix(".png")
        found.append({
            "rows": rows, "file": picture if picture.exists() else None,
            "description": "Class regions and prototypes in the plane of their two principal axes. "
                      f"Distance of centroids: {numbers}",
            "caption": f"{path.stem}: regions of cams/{content['cams']} on {content['split']} at Φ "
                       f"{content['phi']:g}, {content['photos']} photos"})
    return found


def agreement(workspace: Workspace, name: str, photos: Sequence[Mapping[str, Any]], layer: int
              ) -> JsonObject | None:
    """How well a segmenter's classes agree with the tags; None where there is nothing to compare.

    Args:
        photos: records of `draw_photo`.
        layer: index of the predictions among the layers.
    """
    compared = [photo for photo in photos if photo["layers"] and "apart" in photo["layers"][layer]]
    if not compared:
        return None
    tagged, found = np.zeros((2, len(compared), len(workspace.classes)), bool)
    for number, photo in enumerate(compared):
        tagged[number, [index - 1 for index in photo["tags"]]] = True
        shown = photo["layers"][layer]["found"]
        found[number, [index - 1 for index in shown if index <= len(workspace.classes)]] = True
    scores = score_agreement(found, tagged)
    rows = [{"name": label, "tagged": int(tagged[:, index].sum()),
             "found": int(found[:, index].sum()),
             **{key: _or_none(getattr(scores, key)[index])
                for key in ("precision", "recall", "f1")}}
            for index, label in enumerate(workspace.classes)
            if tagged[:, index].any() or found[:, index].any()]
    mean = {"name": "mean", "tagged": int(tagged.sum()), "found": int(found.sum()),
            **{key: _or_none(value) for key, value in scores.means().items()}}
    return {"name": name, "photos": len(compared), "rows": [*rows, mean]}


def _or_none(score: float) -> float | None:
    """The score; None where nothing is counted."""
    return None if score != score else float(score)
