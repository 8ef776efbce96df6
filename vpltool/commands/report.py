"""`report`: writes HTML pages with photos, maps, scores and true masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vpltool import __version__, console, options
from vpltool.commands._report_photos import SPECK, Layer, draw_photo, open_layer
from vpltool.core.agreement import agreement
from vpltool.engine import panels, reports
from vpltool.engine.photos import check_there, paths_of
from vpltool.errors import VplError
from vpltool.formats import IGNORE, Header, JsonObject, Photo, Workspace, read_json
from vpltool.formats.archives import write_tree
from vpltool.formats.atomic import atomic_path
from vpltool.formats.fields import NUMBER, OBJECT, REAL, TEXT, check_fields
from vpltool.formats.header import format_preset
from vpltool.formats.kinds import results_of
from vpltool.formats.workspace import untagged_show_none
from vpltool.lazy import np
from vpltool.parallel import device, threads
from vpltool.pictures.colours import class_palette
from vpltool.pictures.overlays import shown_as
from vpltool.pictures.page import Chart, data_uri, line_chart, render_page
from vpltool.settings import Settings, Stage, setting
from vpltool.state import Artifact, State, read_state, settings_shown


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Settings of `report`."""

    what: tuple[str, ...] = setting(
        (), "Results to show over the photos: cams/NAME, masks/NAME, predictions/NAME, or folders "
            "of masks. Default: all results of the split.", positional=True, metavar="WHAT")
    split: str = setting("", "Split to show; default: val, or the first that has results.",
                         metavar="NAME")
    truth: bool = setting(True, "Show the true masks, and the IoU of each photo.")
    side: int = setting(512, "Longest side of the pictures.", low=64, metavar="PIXELS")
    one_file: bool = setting(False, "Write a single file that contains all pictures.", off="-")
    limit: int = options.limit()
    workers: int = options.workers()
    out: Path | None = options.out()


STAGE = Stage(order=95, panel="4. Scores and pictures",
              reads=("cams", "masks", "predictions", "probabilities", "scores"), writes=(),
              settings=ReportSettings)

PAGE = "index.html"

_COURSES = {
    "learn-prototypes": ("course", ("objective",)),
    "align": ("curve", ("loss of patches", "loss of text")),
    "train-decoder": ("curve", ("mask loss", "contrast", "affinity")),
}
"""Command to the fact of its header with a curve, and the names of its columns after the step."""

_MOST_LINES = 6
"""Lines in one chart."""


def run(workspace: Workspace, settings: ReportSettings) -> Path:
    """Write an HTML report: all photos, scores, confusion, curves, and what was run.

    On each photo you can switch between results and zoom; you can sort the photos by IoU,
    uncertainty or disagreement with the tags, and filter them by class. The page needs no network
    and no server.
    Without true masks it shows everything but scores. It is always rewritten.

    Example: vpltool report --split val

    Example: vpltool report predictions/contrast --limit 50 --one-file --out report.html

    Returns:
        the page.

    Raises:
        VplError: something that is named is missing, no photo is there, or the folder holds other
            files.
    """
    split = settings.split or _usual_split(workspace)
    check_there(paths_of(workspace, split).values())
    photos = workspace.photos(split, settings.limit)
    scores = _read_scores(workspace.path)
    cuts = {score["what"].removeprefix("cams-"): score["threshold"]
            for score in scores if score["split"] == split and score["threshold"]}
    untagged = not untagged_show_none(workspace.path, photos)
    layers = [replace(open_layer(workspace, column, cuts), untagged=untagged)
              for column in panels.open_columns(workspace, settings.what, split)]
    truth = settings.truth and any(photo.mask for photo in photos)
    state = _state(workspace)
    gaps = _gaps(workspace.path)
    records: list[JsonObject] = []

    def pictures() -> Iterator[tuple[str, bytes]]:
        """Yield the pictures photo by photo, and collect the records of the photos."""
        for number, gap in enumerate(gaps):
            if gap["file"]:
                gap["picture"] = f"pictures/gap-{number}.png"
                yield gap["picture"], gap["file"].read_bytes()
        for record, files in _draw(workspace, photos, layers, settings, truth=truth):
            records.append(record)
            yield from files.items()

    def content() -> JsonObject:
        return _content(workspace, split, scores, state, gaps, layers, records, truth=truth)

    if settings.one_file:
        return _write_file(settings.out or workspace.path / "report.html", pictures(), content)
    out = settings.out or workspace.path / "report"
    write_tree(out, _folder(pictures(), content), "report")
    return out / PAGE


def _usual_split(workspace: Workspace) -> str:
    splits = [split for photo in workspace.photos() for split in photo.splits]
    if not splits:
        raise VplError(f"no photo of {workspace.path} is in a split", "prepare again")
    in_order = sorted(set(splits), key=lambda split: (split != "val", splits.index(split)))
    return next((split for split in in_order if panels.columns_there(workspace.path, split)),
                in_order[0])


def _state(workspace: Workspace) -> State:
    try:
        return read_state(workspace)
    except VplError as error:
        console.warn(f"the report does not say what was run: {error.message}")
        return State(workspace, {})


def _draw(workspace: Workspace, photos: Sequence[Photo], layers: Sequence[Layer],
          settings: ReportSettings, *, truth: bool
          ) -> Iterator[tuple[JsonObject, dict[str, bytes]]]:
    def draw(numbered: tuple[int, Photo]) -> tuple[JsonObject, dict[str, bytes]]:
        return draw_photo(workspace, numbered[1], numbered[0], layers, settings.side, truth=truth)

    with console.progress("report", len(photos)) as advance:
        workers = device.worker_count(settings.workers)
        for record, files in threads.in_threads(draw, enumerate(photos), workers):
            if why := record.get("why"):
                console.warn(f"no picture of {record['id']}: {why}")
            advance()
            yield record, files


def _content(workspace: Workspace, split: str, scores: Sequence[Mapping[str, Any]], state: State,
             gaps: Sequence[Mapping[str, Any]], layers: Sequence[Layer],
             records: Sequence[JsonObject], *, truth: bool) -> JsonObject:
    """Return everything that the page shows; see `report/page.html`."""
    flat = class_palette()
    named = dict(enumerate(("background", *workspace.classes)))
    colours = {index: "#{:02x}{:02x}{:02x}".format(*flat[3 * shown_as(index):][:3])
               for index in named} | {IGNORE: "#ffffff"}
    listed = [{"name": layer.column.name, "kind": "maps" if layer.is_maps else "labels"}
              for layer in layers]
    agreed = [_agreement(workspace, layer.column.name, records, index)
              for index, layer in enumerate(layers) if not layer.is_maps and not layer.knows_tags]
    return {
        "title": workspace.name, "version": __version__, "facts": _about(workspace),
        "scores": scores, "splits": sorted({score["split"] for score in scores}),
        "iou_classes": list(dict.fromkeys(name for score in scores for name in score["iou"])),
        "agreement": [table for table in agreed if table], "speck": SPECK,
        "charts": _charts(state.in_order, scores), "gaps": gaps,
        "artifacts": _artifacts(state), "split": split,
        "photos": [record for record in records if "why" not in record],
        "unread": [record for record in records if "why" in record],
        "shown": {
            "classes": named | {IGNORE: "left open"}, "colours": colours,
            "layers": listed + [{"name": "truth", "kind": "labels"}] * truth,
            "start": len(listed) - 1,
            "scores": [{"confusion": score["confusion"]} for score in scores]}}


def _folder(pictures: Iterator[tuple[str, bytes]], content: Callable[[], JsonObject]
            ) -> Iterator[tuple[str, bytes]]:
    yield from pictures
    yield PAGE, "".join(render_page(content())).encode()


def _write_file(path: Path, pictures: Iterator[tuple[str, bytes]],
                content: Callable[[], JsonObject]) -> Path:
    """Write the page with its pictures inside, which a temporary folder holds until then."""
    with TemporaryDirectory() as folder, atomic_path(path) as temporary:
        for name, picture in pictures:
            waiting = Path(folder) / name
            waiting.parent.mkdir(parents=True, exist_ok=True)
            waiting.write_bytes(picture)

        def inside(entry: Mapping[str, Any]) -> JsonObject:
            held: JsonObject = {}
            if entry.get("picture"):
                held["picture"] = data_uri(Path(folder) / entry["picture"])
            if "layers" in entry:
                held["layers"] = [inside(layer) for layer in entry["layers"]]
            return {**entry, **held}

        found = content()
        found |= {"photos": (inside(entry) for entry in found["photos"]),
                  "gaps": [inside(gap) for gap in found["gaps"]]}
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(render_page(found))
    return path


def _about(workspace: Workspace) -> list[tuple[str, str]]:
    photos = workspace.photos()
    splits = Counter(split for photo in photos for split in photo.splits)
    return [
        ("Photos", f"{len(photos)}: " + ", ".join(f"{count} in {name}"
                                                  for name, count in splits.items())),
        ("Classes", str(len(workspace.classes))),
        *([("Encoder", workspace.main_encoder)] if workspace.encoder else []),
        *([("CLIP", workspace.model)] if workspace.has_words else []),
        ("With true masks", str(sum(photo.mask is not None for photo in photos))),
        ("Made with", f"vpltool {__version__}")]


def _read_scores(work: Path) -> list[JsonObject]:
    """Read the scores that `eval` wrote, sorted by split and mIoU."""
    read = [(path, content) for path in results_of(work, "scores")
            if (content := _read(path)).get("kind") == "scores"]
    changed = reports.changed_since(work, (content for _, content in read))
    found = [_score(content, path, reports.CHANGED * has_changed)
             for (path, content), has_changed in zip(read, changed, strict=True)]
    titles = [(entry["title"], entry["split"]) for entry in found]
    for entry in found:
        if titles.count((entry["title"], entry["split"])) > 1:
            entry["title"] += f" ({entry['file']})"
    return sorted(found, key=lambda entry: (entry["split"], entry["miou"]))


_GAP = {"prototypes": OBJECT, "cams": TEXT, "split": TEXT, "phi": REAL, "photos": NUMBER}
_GAP_OF = {"space": TEXT, "centroid": REAL, "cosine": REAL}


def _read(path: Path) -> JsonObject:
    """Read and check scores or a gap; empty, after a warning, if the file is damaged."""
    try:
        content = read_json(path, "`eval()`")
        if content.get("kind") == "scores":
            return reports.check_scores(content, path)
        if content.get("kind") == "gap":
            check_fields(content, _GAP)
            for entry in content["prototypes"].values():
                check_fields(entry, _GAP_OF)
        return content
    except (VplError, ValueError) as error:
        reason = error.message if isinstance(error, VplError) else f"it is not valid: {error}"
        console.warn(f"{path.name} is skipped: {reason}")
        return {}


def _score(content: Mapping[str, Any], path: Path, mark: str) -> JsonObject:
    cut = content.get("threshold")
    made, scored = (content.get(key) or {} for key in ("made_under", "scored_under"))
    preset = format_preset(made) + ("" if made == scored else f", scored {format_preset(scored)}")
    return {
        "title": content["what"] + mark,
        "what": content["what"], "file": path.stem,
        "split": content["split"], "photos": content["photos"], "iou": content["iou"],
        "miou": content["miou"], "accuracy": content["accuracy"],
        "foreground": reports.foreground(content["iou"]),
        "confusion": content.get("confusion", []), "left_out": content.get("photos_left_out", 0),
        "cut": f"{cut:g} ({content.get('threshold_chosen_by', '')})" if cut else "",
        "threshold": cut or 0.0, "sweep": content.get("sweep", {}), "preset": preset}


def _artifacts(state: State) -> list[JsonObject]:
    return [{"name": artifact.name, "command": artifact.header.command,
             "settings": settings_shown(artifact.header),
             "preset": format_preset(artifact.header.preset) if artifact.header.preset else "",
             "sources": sorted(set(artifact.header.sources.values())),
             "stale": state.stale(artifact), "failed": len(artifact.failed)}
            for artifact in state.in_order]


def _charts(made: Sequence[Artifact], scores: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Draw curves of phase 1 and of trainings, and mIoU of CAMs at every threshold."""
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
    # A loss without weight is always 0.
    lines = {column: values for column, values in lines.items() if any(values)}
    if len(rows) < 2 or not lines:
        return None
    return line_chart(f"{name} ({header.command})", "step", list(_steps(rows)), lines)


def _steps(rows: Sequence[Sequence[float]]) -> Iterator[float]:
    """Yield the steps of a curve, continued where a round begins at 0 again."""
    before, last = 0.0, 0.0
    for row in rows:
        if row[0] < last:
            before += last + 1
        last = row[0]
        yield before + last


def _gaps(work: Path) -> list[JsonObject]:
    """Read the gaps that `gap` measured: numbers of each set of prototypes, and the picture."""
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


def _agreement(workspace: Workspace, name: str, photos: Sequence[Mapping[str, Any]], layer: int
              ) -> JsonObject | None:
    """Compute how well the classes of a layer agree with the tags; None without tagged photos.

    `photos` are records of `draw_photo`.
    """
    compared = [photo for photo in photos if photo["layers"] and "apart" in photo["layers"][layer]]
    if not compared:
        return None
    tagged, found = np.zeros((2, len(compared), len(workspace.classes)), bool)
    for number, photo in enumerate(compared):
        tagged[number, [index - 1 for index in photo["tags"]]] = True
        shown = photo["layers"][layer]["found"]
        found[number, [index - 1 for index in shown if index <= len(workspace.classes)]] = True
    scores = agreement(found, tagged)
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
    """Return the score; None for NaN, where nothing is counted."""
    return None if score != score else float(score)
