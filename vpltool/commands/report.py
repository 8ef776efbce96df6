"""`report`: writes HTML pages with photos, maps, scores and true masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vpltool import __version__, console, options
from vpltool.commands import _report_facts
from vpltool.commands._report_photos import SPECK, Drawn, Layer, draw_photo, open_layer
from vpltool.engine import panels
from vpltool.errors import VplError
from vpltool.formats import IGNORE, JsonObject, Photo, Workspace
from vpltool.formats.archives import write_folder
from vpltool.formats.atomic import atomic_path
from vpltool.parallel import device, threads
from vpltool.pictures.colours import class_palette
from vpltool.pictures.overlays import shown_as
from vpltool.pictures.page import data_uri, render_page
from vpltool.settings import Settings, setting
from vpltool.stage import Stage
from vpltool.state import State, read_state


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Settings of `report`."""

    what: tuple[str, ...] = setting(
        (), "Results to show over the photos: cams/NAME, masks/NAME, predictions/NAME, or folders "
            "of masks. Default: all results of the split.", positional=True, metavar="WHAT")
    split: str = setting("", "Split to show; default: val if there is one, else the first.",
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
        VplError: something that is named is missing, or the folder holds other files.
    """
    split = settings.split or _usual_split(workspace)
    photos = workspace.photos(split, settings.limit)
    scores = _report_facts.read_scores(workspace.path)
    cuts = _report_facts.thresholds(scores, split)
    layers = [open_layer(workspace, column, cuts, split)
              for column in panels.open_columns(workspace, settings.what, split)]
    truth = settings.truth and any(photo.mask for photo in photos)
    state = _state(workspace)
    gaps = _report_facts.gaps(workspace.path)
    records: list[JsonObject] = []

    def pictures() -> Iterator[tuple[str, bytes]]:
        """Draw photo after photo; what the page is told of them is kept, their pictures are not."""
        for number, gap in enumerate(gaps):
            if gap["file"]:
                gap["picture"] = f"pictures/gap-{number}.png"
                yield gap["picture"], gap["file"].read_bytes()
        for drawn in _draw(workspace, photos, layers, settings, truth=truth):
            records.append(drawn.record)
            yield from drawn.files.items()

    def content() -> JsonObject:
        return _content(workspace, split, scores, state, gaps, layers, records, truth=truth)

    if settings.one_file:
        return _write_file(settings.out or workspace.path / "report.html", pictures(), content)
    out = settings.out or workspace.path / "report"
    write_folder(out, _folder(pictures(), content), (PAGE,), (".png", ".jpg"))
    return out / PAGE


def _usual_split(workspace: Workspace) -> str:
    splits = list(dict.fromkeys(split for photo in workspace.photos() for split in photo.splits))
    if not splits:
        raise VplError(f"no photo of {workspace.path} is in a split", "prepare again")
    return "val" if "val" in splits else splits[0]


def _state(workspace: Workspace) -> State:
    try:
        return read_state(workspace)
    except VplError as error:
        console.warn(f"the report does not say what was run: {error.message}")
        return State(workspace, {})


def _draw(workspace: Workspace, photos: Sequence[Photo], layers: Sequence[Layer],
          settings: ReportSettings, *, truth: bool) -> Iterator[Drawn]:
    draw = functools.partial(_draw_one, workspace, layers, settings.side, truth)
    with console.progress("report", len(photos)) as advance:
        workers = device.worker_count(settings.workers)
        for drawn in threads.in_threads(draw, enumerate(photos), workers):
            if why := drawn.record.get("why"):
                console.warn(f"no picture of {drawn.record['id']}: {why}")
            advance()
            yield drawn


def _draw_one(workspace: Workspace, layers: Sequence[Layer], side: int, truth: bool,
              numbered: tuple[int, Photo]) -> Drawn:
    number, photo = numbered
    return draw_photo(workspace, photo, number, layers, side, truth=truth)


def _content(workspace: Workspace, split: str, scores: Sequence[Mapping[str, Any]], state: State,
             gaps: Sequence[Mapping[str, Any]], layers: Sequence[Layer],
             records: Sequence[JsonObject], *, truth: bool) -> JsonObject:
    """Everything that the page shows; see `report/page.html`."""
    flat = class_palette()
    named = dict(enumerate(("background", *workspace.classes)))
    colours = {index: "#{:02x}{:02x}{:02x}".format(*flat[3 * shown_as(index):][:3])
               for index in named} | {IGNORE: "#ffffff"}
    listed = [{"name": layer.column.name, "kind": "maps" if layer.is_maps else "labels"}
              for layer in layers]
    agreed = [_report_facts.agreement(workspace, layer.column.name, records, index)
              for index, layer in enumerate(layers) if not layer.is_maps and not layer.knows_tags]
    return {
        "title": workspace.name, "version": __version__, "facts": _report_facts.about(workspace),
        "scores": scores, "splits": sorted({score["split"] for score in scores}),
        "iou_classes": list(dict.fromkeys(name for score in scores for name in score["iou"])),
        "agreement": [table for table in agreed if table], "speck": SPECK,
        "charts": _report_facts.charts(state.in_order, scores), "gaps": gaps,
        "artifacts": _report_facts.artifacts(state), "split": split,
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
    """Write the page with its pictures inside; they wait in a temporary folder, not in memory."""
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
