"""`predict`: masks of any photos, by a trained segmenter."""

from __future__ import annotations

import contextlib
import functools
import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, formats
from vpltool.core import segment
from vpltool.core.photos import describe_failure, page_count, read_photo
from vpltool.datasets.layouts import named_photos
from vpltool.engine import headers, photo_work, running
from vpltool.engine import photos as selection
from vpltool.errors import PhotosFailed, VplError
from vpltool.formats import Header, InputFolder, JsonObject, OutputFolder, Workspace, rasters
from vpltool.formats.kinds import check_values, result_path
from vpltool.formats.manifest import MANIFEST, manifest_of
from vpltool.formats.workspace import relative_to
from vpltool.names import short_path
from vpltool.parallel import device, threads
from vpltool.pictures.overlays import overlay
from vpltool.settings import Stage, warn_without_effect
from vpltool.stages._chosen_segmenter import Chosen, PredictSettings, check_out, choose_segmenter
from vpltool.stages._scenes import predict_scenes, scenes_among

_QUALITY = 90
"""Of the JPEGs that show predictions."""

STAGE = Stage(order=80, panel="3. Masks and segmenter", reads=("decoder", "groups", "features"),
              writes=("predictions", "probabilities", "cams", "group-maps", "scenes"),
              settings=PredictSettings, begins=True)


def run(path: Path, settings: PredictSettings) -> list[Path]:
    """Segment photos, which need no tags; write palette PNGs at the photo's own size.

    Photos of a split go to predictions/NAME/SPLIT, those of a folder to
    predictions/NAME/FOLDER, single files to predictions/NAME/files; later
    photos are added. GeoTIFFs are read window by window; their labels go to
    scenes/NAME, as GeoTIFFs.

    Example: vpltool predict --split val --scales 1,0.75 --flip

    Example: vpltool predict holiday/ --overlay

    Example: vpltool predict sea.jpg --out sea-mask.png

    Example: vpltool predict holiday/ --segmenter animals.safetensors

    Example: vpltool predict map.tif --tile 448 --out map-labels.tif

    Example: vpltool predict --segmenter groups --classes words.txt holiday/

    Next: vpltool eval --split val, or vpltool crf --what predictions/NAME

    Returns:
        the folders of predictions, and what is beside them.

    Raises:
        VplError: an input is missing, or a setting is refused.
        PhotosFailed: some photos failed.
    """
    work = choose_segmenter(path, settings)
    if settings.images and (scenes := _scenes_alone(settings.images)):
        return predict_scenes(work, scenes)
    settings = work.settings
    check_out(settings.out, (".png",), "the labels of a photo are a PNG")
    tasks = _named_tasks(work) if settings.images else [_split_task(work)]
    unused = dict(work.segmenter.unused)
    if tasks[0].features:
        unused["precision"] = "no encoder is run; `source='photos'` runs it"
    unused |= dict.fromkeys(("bands", "percentiles"), "only a GeoTIFF has bands")
    if settings.images or settings.out:
        why = "only those of a split, at its own path, are stored"
        unused |= {"maps": why} if _keeps_named(settings) else {"probabilities": why, "maps": why}
    warn_without_effect(settings, without=unused)
    if out := _one_picture(settings):
        return _one_file(work, tasks, out)
    opened = [(task, _open(work, task)) for task in tasks]
    made: list[Path] = []
    failed: list[PhotosFailed] = []
    for task, outputs in opened:
        try:
            made += photo_work.make_photos(
                f"predict {work.segmenter.path.stem} {task.name}", outputs,
                functools.partial(_start, work, task), functools.partial(_write, work), settings,
                reads=task.paths)
        except PhotosFailed as error:
            failed.append(error)
            made += [output.path for output in outputs]
        if settings.overlay:
            made.append(_write_overlays(work, outputs[0].path, task.paths))
    if failed:
        raise PhotosFailed("; ".join(error.message for error in failed), failed[0].hint, made,
                           [key for error in failed for key in error.photos])
    return made


@dataclass(frozen=True)
class _Task:
    """Photos whose predictions go to one folder, named after their split or folder.

    `features` are stored layers to use instead of the photos, `images` the given files and folders,
    `tagged` the only classes that may compete, by id.
    """

    name: str
    photos: selection.Photos
    paths: Mapping[str, Path]
    features: InputFolder | None = None
    images: Sequence[Path] = ()
    tagged: Mapping[str, Sequence[int]] | None = None


def _keeps_named(settings: PredictSettings) -> bool:
    """Return whether probabilities of named photos are stored: only if explicitly requested."""
    return settings.probabilities and "probabilities" in settings.given and settings.out is None


def _one_picture(settings: PredictSettings) -> Path | None:
    """Return the PNG that `out` names; None if it names a folder, or nothing."""
    out = settings.out
    return out if out and out.suffix.lower() == ".png" and not out.is_dir() else None


def _split_task(work: Chosen) -> _Task:
    """Select this process's photos of a split."""
    workspace, settings = work.workspace, work.settings
    shard = selection.chosen_shard(settings.shard)
    listed = selection.assigned(workspace.photos(settings.split, settings.limit), shard,
                                lambda photo: photo.id)
    features = work.segmenter.serving_features(workspace, settings, [photo.id for photo in listed])
    photos = selection.photos_with(workspace, settings.split, settings.limit,
                                   *([features] if features else []), shard=shard)
    paths = {photo.id: workspace.image_path(photo) for photo in listed}
    if not settings.tags:
        return _Task(settings.split, replace(photos, per_photo_inputs={}), paths, features)
    tagged = {photo.id: work.named.indices_of(photo) for photo in listed}
    return _Task(settings.split, photos, paths, features, tagged=tagged)


def _scenes_alone(images: Sequence[Path]) -> list[Path]:
    """Return the GeoTIFFs; none if these are photos, among which an odd TIFF cannot be read."""
    scenes = scenes_among(images)
    if len(scenes) == len({path.absolute() for image in images
                           for path in named_photos([image]).values()}):
        return scenes
    for scene in scenes:
        if rasters.is_scene(scene, unknown=False):
            raise VplError(f"{scene} is a GeoTIFF, and others are photos",
                           "predict them in two runs")
    return []


def _page_counts(paths: Iterable[Path]) -> dict[str, int]:
    """Return the number of pages by name of the TIFFs that can be read."""
    pages = {}
    for path in paths:
        # Unreadable ones are told when their turn comes.
        with contextlib.suppress(OSError):
            if path.suffix.lower() in rasters.SUFFIXES:
                pages[path.name] = page_count(path)
    return pages


def _named_tasks(work: Chosen) -> list[_Task]:
    """Make a task for each given folder of photos, and one for single files."""
    settings = work.settings
    if settings.tags:
        raise VplError("`tags=True` is for photos of the workspace: named ones have no tags",
                       "`split='NAME'`, or leave `tags` out")
    if settings.source == "features":
        raise VplError("`source='features'` is for photos of the workspace", "`source='photos'`")
    shard = (formats.shards.WHOLE if _one_picture(settings)
             else selection.chosen_shard(settings.shard))
    images: dict[str, list[Path]] = {}
    for path in settings.images:
        own = path.resolve().name if path.is_dir() and not settings.out else ""
        images.setdefault(own or "files", []).append(path)
    groups, tasks = {name: named_photos(members) for name, members in images.items()}, []
    # A folder that is called like a split must not share the split's predictions.
    splits = ({split for photo in work.workspace.photos() for split in photo.splits}
              if (work.workspace.path / "images.jsonl").exists() else ())
    left = settings.limit or sum(map(len, groups.values()))
    for name, found in groups.items():
        paths = dict(list(found.items())[:left])
        left -= len(paths)
        if not paths:
            break
        paths = {key: paths[key] for key in selection.assigned(paths, shard)}
        photos = selection.Photos(list(paths), selection.file_identities(paths), {},
                                  not settings.limit, shard)
        tasks.append(_Task(f"{name}-photos" if name in splits else name, photos, paths,
                           images=images[name]))
    photos_named = [path for task in tasks for path in task.paths.values()]
    selection.warn_of_pages(_page_counts(photos_named), len(photos_named))
    return tasks


def _open(work: Chosen, task: _Task) -> list[OutputFolder]:
    base, name, settings = work.workspace.path, work.segmenter.path.stem, work.settings
    masks = settings.out or result_path(base, "predictions", name, task.name)
    if not settings.overwrite:
        _check_same_folder(masks, task.images, task.paths, base)
    folders = {masks: _make_header(work, task, "predictions")}
    if not (settings.out or settings.images) or _keeps_named(settings):
        stored = ["probabilities"] if settings.probabilities else []
        stored += work.segmenter.maps if settings.maps else ()
        folders |= {result_path(base, kind, name, task.name): _make_header(work, task, kind)
                    for kind in stored}
    return photo_work.open_outputs(folders, task.photos, settings, 1 + len(work.named.classes))


def _check_same_folder(masks: Path, images: Sequence[Path], ids: Iterable[str], base: Path) -> None:
    """Check that the photos of a folder do not replace masks of another folder's photos.

    Photos of a second folder with the same name are added unless their names collide.
    """
    if len(images) != 1 or not images[0].is_dir() or not (masks / MANIFEST).exists():
        return
    before = manifest_of(masks, "predict").header.sources.get("images", "")
    other = base / before
    if not before or not other.is_dir() or other.samefile(images[0]):
        return
    for key in ids:
        if (masks / f"{key}.png").exists() and any(other.glob(f"{glob.escape(key)}.*")):
            raise VplError(f"{masks} holds the masks of {short_path(other)}, which also has a "
                           f"photo {key}", "`out='DIR'` keeps both")


def _make_header(work: Chosen, task: _Task, kind: str) -> Header:
    workspace, settings, segmenter = work.workspace, work.settings, work.segmenter
    options: JsonObject = {"split": task.name}
    if "scales" not in segmenter.unused:
        options |= {"scales": settings.factors, "source": "features" if task.features else "photos"}
    if settings.tile:
        options |= work.scaled
    header = (work.header(kind, {"features": task.features}, options, "precision")
              if task.features else work.header(kind, {}, options))
    images = [relative_to(path, workspace.path) for path in task.images]
    call = {key: value for key, value in header.call.items() if key not in ("images", "classes")}
    sources = dict(header.sources)
    if settings.classes:
        sources["classes"] = relative_to(settings.classes, workspace.path)
    if len(images) == 1:
        sources["images"] = images[0]
    elif images:
        call["images"] = images
    return replace(header, call=call, sources=sources)


def _one_file(work: Chosen, tasks: Sequence[_Task], out: Path) -> list[Path]:
    """Write the labels of a single photo to a file."""
    settings, count = work.settings, sum(len(task.photos.ids) for task in tasks)
    if count != 1:
        raise VplError(f"{out} is one file, for {count} photos", "use a folder: `out='DIR'`")
    (task,) = tasks
    header = _make_header(work, task, "predictions")
    header = replace(header, inputs=header.inputs | selection.file_identities(task.paths))
    made = [out]
    if not headers.check_file(out, header, settings):
        for _, segmented in _start(work, task, list(task.photos.ids)):
            if isinstance(segmented, photo_work.Failed):
                raise VplError(f"{segmented.reason}", "fix it and run the same command again")
            formats.write_labels(out, work.labels(segmented), header)
    if settings.overlay:
        (photo,) = task.paths.values()
        made.append(_write_overlay(work.named, photo, out,
                                   out.with_name(f"{out.stem}-overlay.jpg")))
    return made


def _start(work: Chosen, task: _Task, todo: list[str]) -> Iterator[photo_work.Made]:
    """Load and check everything; return an iterator over each photo's probabilities."""
    settings, paths = work.settings, {key: task.paths[key] for key in todo}
    if settings.max_side and not (settings.tile or task.features):
        selection.tell_of_side(paths.values(), settings.max_side, console.advise)
    made = (running.from_features(work.segmenter.network(), task.features, paths, settings)
            if task.features else work.segmenter.load(work.named, settings).photos(paths, settings))
    return made if task.tagged is None else _among_tags(made, task.tagged)


def _among_tags(made: Iterator[photo_work.Made], tagged: Mapping[str, Sequence[int]]
                ) -> Iterator[photo_work.Made]:
    """Set the probabilities of untagged classes to zero."""
    for key, segmented in made:
        if isinstance(segmented, running.Segmented):
            segmented = replace(segmented, probabilities=segment.only_classes(
                segmented.probabilities, tagged[key]))
        yield key, segmented


def _write(work: Chosen, output: OutputFolder, key: str, segmented: running.Segmented) -> None:
    # Labels of NaN would be those of the background.
    check_values(output.header.kind, {"probabilities": segmented.probabilities}, "")
    if output.header.kind == "predictions":
        output.write_labels(key, work.labels(segmented))
    else:
        output.write_tensors(key, segmented.tensors(output.header.kind))


def _write_overlays(work: Chosen, predictions: Path, photos: Mapping[str, Path]) -> Path:
    """Draw the predictions without an up-to-date picture, and return the folder of pictures.

    It is below pictures/, or beside predictions outside the workspace.
    """
    base, pictures = work.workspace.path, predictions.with_name(f"{predictions.name}-overlays")
    if base.resolve() in predictions.resolve().parents:
        pictures = base / "pictures" / predictions.resolve().relative_to(base.resolve())

    def draw(key: str) -> None:
        _write_overlay(work.named, photos[key], predictions / f"{key}.png", pictures / f"{key}.jpg")

    todo = [key for key in photos if (predictions / f"{key}.png").exists()
            and _written(pictures / f"{key}.jpg") <= _written(predictions / f"{key}.png")]
    for _ in photo_work.tracked(f"pictures {pictures.name}", threads.in_threads(
            draw, todo, device.worker_count(work.settings.workers)), len(todo)):
        pass
    return pictures


def _write_overlay(workspace: Workspace, photo: Path, labels: Path, picture: Path) -> Path:
    """Draw one prediction over its photo, and return its path; warn of an unreadable photo."""
    try:
        pixels = read_photo(photo)
    except OSError as error:
        console.warn(f"no picture of {describe_failure(photo, error)}")
        return picture
    page = overlay(pixels, formats.read_labels(labels), dict(enumerate(workspace.classes, 1)))
    with formats.atomic.atomic_path(picture) as temporary:
        page.save(temporary, format="JPEG", quality=_QUALITY)
    return picture


def _written(path: Path) -> float:
    """Return the time of a file's last change; 0 if it does not exist."""
    return path.stat().st_mtime if path.exists() else 0.0
