"""Prediction of GeoTIFFs by rows of tiles: memory for one row, and resumable after each."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from vpltool import console
from vpltool.core import agreement, grids, segment
from vpltool.core.classes import label_type
from vpltool.engine import headers, photo_work, running
from vpltool.errors import PhotosFailed, VplError
from vpltool.formats import IGNORE, Header, describe, kinds, rasters, read_labels, write_labels
from vpltool.json_text import JsonObject
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.methods.inputs import AUTO
from vpltool.names import is_hidden
from vpltool.parallel import once
from vpltool.stages._chosen_segmenter import Chosen, check_out

_ROWS = 128
"""Rows of pixels that are labelled at a time."""


def scenes_among(images: Sequence[Path]) -> list[Path]:
    """Return the GeoTIFFs among files and in folders, without hidden ones in these, each once."""
    named = [path for image in images for path in (
        sorted(path for path in image.rglob("*") if not is_hidden(path, image))
        if image.is_dir() else [image])]
    return list({path.absolute(): path for path in named if rasters.is_scene(path)}.values())


def predict_scenes(work: Chosen, paths: Sequence[Path]) -> list[Path]:
    """Predict the labels of GeoTIFFs as GeoTIFFs.

    Returns:
        the files: `out`, or files in it; by default scenes/SEGMENTER/NAME.tif.

    Raises:
        VplError: no file can be opened, or one was predicted with other settings.
        PhotosFailed: a file is damaged; the others are done.
    """
    settings, cut = work.settings, _cut(work)
    check_out(settings.out, rasters.SUFFIXES, "the labels of a GeoTIFF are a GeoTIFF")
    scenes, failed = _open(paths, rasters.Scaling.parse(
        cut.get("bands", settings.bands), cut.get("percentiles", settings.percentiles)))
    outs = _outs(work, paths)
    todo, options = [], {"scales": settings.factors, **cut, **work.scaled}
    for scene in scenes:
        out, header = outs[scene.path], _header(work, scene, options)
        # A lock to the end would be an open file for each scene.
        with once.writer():
            if not headers.check_file(out, header, settings):
                todo.append((scene, out, header))
    load = functools.cache(functools.partial(_load, work))
    for scene, out, header in todo:
        with scene, once.writer():
            # Another command may have made it meanwhile.
            if headers.check_file(out, header, settings):
                continue
            scene.warn_unplaced()
            tiled = load()
            try:
                _predict(work, tiled, scene, out, header)
            except VplError as error:
                failed[scene.path] = error
    if failed:
        made = [out for path, out in outs.items() if path not in failed]
        told = (f"{len(failed)} of {len(paths)} GeoTIFFs failed, the others are done: "
                if made else "")
        raise PhotosFailed(told + "; ".join(error.message for error in failed.values()),
                           "fix them and run the same command again; rows that are done are kept",
                           made, sorted(path.stem for path in failed))
    return list(outs.values())


def _cut(work: Chosen) -> dict[str, str]:
    """Return bands and percentiles as the segmenter's photos were cut, unless they are given."""
    taken = {name: value for name, value in work.segmenter.cut.items()
             if name != "tile" and not work.settings.is_given(name)}
    if taken:
        told = ", ".join(f"`{name}={value!r}`" for name, value in taken.items())
        console.note(f"{told}: as {work.segmenter.path.stem} was trained")
    return taken


def _open(paths: Sequence[Path], scaling: rasters.Scaling
          ) -> tuple[list[rasters.Scene], dict[Path, VplError]]:
    """Return the scenes that can be read, and the errors of the others by path."""
    scenes, failed = list[rasters.Scene](), dict[Path, VplError]()
    for path in paths:
        try:
            scenes.append(rasters.Scene(path, scaling))
        except VplError as error:
            failed[path] = error
            continue
        rasters.check_alike(scenes[0], scenes[-1])
    if not scenes:
        raise failed[paths[0]]
    return scenes, failed


def _outs(work: Chosen, paths: Sequence[Path]) -> dict[Path, Path]:
    """Return the output file of each scene by path; no two may be the same."""
    out = work.settings.out
    if out and out.suffix.lower() in rasters.SUFFIXES and not out.is_dir():
        if len(paths) > 1:
            raise VplError(f"{out} is one file, for {len(paths)} scenes",
                           "use a folder: `out='DIR'`")
        return {paths[0]: out}
    folder = out or kinds.result_path(work.workspace.path, "scenes",
                                      work.segmenter.path.stem).with_suffix("")
    made_of: dict[Path, Path] = {}
    for path in paths:
        labels = folder / f"{path.stem}.tif"
        if (first := made_of.setdefault(labels, path)) != path:
            raise VplError(f"{first} and {path} would both be {labels}",
                           "predict them in two runs, each with its own `out='DIR'`")
    return {path: labels for labels, path in made_of.items()}


def _header(work: Chosen, scene: rasters.Scene, options: JsonObject) -> Header:
    header = work.header("scenes", {"scene": scene.path}, options, "split", "source")
    sources = dict(header.sources)
    sources["images"] = sources.pop("scene")
    return replace(header, sources=sources)


def _load(work: Chosen) -> running.TiledSegmenter:
    settings = work.settings
    if max(settings.factors) != 1:
        raise VplError(f"`scales={settings.scales!r}`: a GeoTIFF is seen at its own size",
                       "`scales='1,0.75'`, or resample it with GDAL")
    tiled = work.segmenter.load(work.named, settings).tiled(
        replace(settings, tile=settings.tile or AUTO))
    assert tiled is not None
    return tiled


def _predict(work: Chosen, tiled: running.TiledSegmenter, scene: rasters.Scene, out: Path,
             header: Header) -> None:
    """Predict a scene by rows of tiles, and join the rows."""
    seen = tiled.preprocess.fit(scene.size)
    tops = [span.start for span in grids.spans(
        tiled.grid(seen)[0], tiled.side // tiled.preprocess.patch, tiled.overlap)]
    folder = out.with_name(out.name + ".rows")
    files = [folder / f"{number:05}.png" for number in range(len(tops))]
    done = sum(1 for _ in takewhile(lambda file: _is_of(file, header), files))
    if done:
        console.note(f"{out}: {done} of {len(files)} rows of tiles are done already")
    for number, row in photo_work.tracked(
            f"predict {scene.path.stem}", _rows(work, tiled, scene, seen, done, tops),
            len(files) - done):
        write_labels(files[number], row, header)
    classes = work.named.classes
    labels = (read_labels(file).astype(label_type(len(classes)), copy=False) for file in files)
    rasters.write_scene(out, scene, labels, header, classes)
    rasters.remove_rows(folder)


def _is_of(file: Path, header: Header) -> bool:
    """Return whether a file of rows exists with the same configuration."""
    try:
        found = describe(file).header if file.is_file() else None
    except VplError:
        return False
    return found is not None and found.config_hash == header.config_hash


def _rows(work: Chosen, tiled: running.TiledSegmenter, scene: rasters.Scene, seen: tuple[int, int],
          done: int, tops: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield the number and the labels (h, W) of each remaining row of tiles.

    A row of pixels lies between two rows of probabilities, so a row of tiles ends half a value
    before its last row of probabilities, with which the next row of tiles begins. The scene is
    `seen` at a size (height, width): scaled down, or with the last pixels repeated.
    """
    if done == len(tops):
        return
    height, width = scene.size
    smaller = seen[0] < height or seen[1] < width
    covered, read = ((scene.size, functools.partial(scene.read_scaled, seen)) if smaller
                     else (seen, scene.read))
    ratio = segment.FINENESS / tiled.preprocess.patch * (seen[0] / covered[0])
    before: Tensor | None = None
    for top, field in tiled.rows(seen, read, max(done - 1, 0)):
        number = tops.index(top)
        bottom = segment.FINENESS * top + field.shape[1]
        begin = _first_after(segment.FINENESS * top, ratio) if top else 0
        end = height if number + 1 == len(tops) else min(_first_after(bottom, ratio), height)
        field = agreement.tempered(field, work.temperature)
        if number >= done:
            known = field if before is None else torch.cat([before, field], dim=1)
            parts = [np.zeros((0, width), np.uint8)]
            for first in range(begin, end, _ROWS):
                labels = segment.labels_between(
                    known, bottom - known.shape[1], ratio, (first, min(first + _ROWS, end)),
                    covered[1], work.settings.abstain)[:, :width]
                labels[~scene.valid(first, 0, *labels.shape)] = IGNORE
                parts.append(labels)
            yield number, np.concatenate(parts)
        before = field[:, -1:]


def _first_after(row: int, ratio: float) -> int:
    """Return the first row of pixels that needs a row of probabilities; see `labels_between`."""
    return math.ceil((row - 0.5) / ratio - 0.5)
