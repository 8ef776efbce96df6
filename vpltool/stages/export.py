"""`export`: predictions or a segmenter in the formats of evaluation servers and other tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console
from vpltool.core.photos import describe_failure, photo_size
from vpltool.engine import features, labelling, masks, panels, photo_work, segmenters
from vpltool.engine.photos import check_there
from vpltool.errors import PhotosFailed, VplError, counted, first_few, part_of
from vpltool.formats import InputFolder, Photo, Workspace, corrections, expect_header, find_folder
from vpltool.formats.kinds import results_of
from vpltool.formats.labels import size_of_labels
from vpltool.formats.manifest import call_of
from vpltool.formats.workspace import relative_to
from vpltool.lazy import np, npt
from vpltool.methods import Exporter, inputs, load_method
from vpltool.parallel import device
from vpltool.settings import Settings, Stage, make, setting, values_of
from vpltool.stages._card import about_segmenter, measured, some_photos, write_card


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Settings that all formats share; each format has its own `split`, with its own default."""

    method: str = setting(help="Format.", metavar="NAME")
    what: str = setting("", "What to export: predictions/NAME, masks/NAME or a folder; of a "
                            "segmenter, the NAME of its decoder; default: the first found of "
                            "vision-refined, vision, text-refined, text.", metavar="PATH-OR-NAME")
    out: Path | None = setting(None, "Output path, instead of the default.", metavar="PATH",
                               short="-o", record="never", by_hand=True)


STAGE = Stage(order=98, panel="4. Scores and pictures", reads=("predictions", "masks", "decoder"),
              writes=("bundle",), settings=ExportSettings, methods="exports", subcommands=True)


def run(workspace: Workspace, settings: ExportSettings) -> list[Path]:
    """Export predictions or a segmenter in the formats of other tools and servers.

    Exports are always rewritten.

    Returns:
        what was written.

    Raises:
        VplError: a photo has no prediction, or one that does not fit it, or the server knows other
            classes; or there is no decoder, or a package is missing.
        PhotosFailed: some photos cannot be read, or an earlier step failed on them; the others are
            exported.
    """
    method = load_method(Exporter, settings.method)
    method.check(settings.of_method)
    exported = {"segmenter": _segmenter, "scene": _scene}.get(method.EXPORTS, _predictions)
    return exported(workspace, settings, method)


def _segmenter(workspace: Workspace, settings: ExportSettings, method: Exporter) -> list[Path]:
    """Export a trained segmenter together with its encoder."""
    segmenter = segmenters.find_segmenter(workspace.path, settings.what, "what")
    workspace.check_classes(segmenter.header, segmenter.path)
    path = settings.out or workspace.path / "exports" / f"{segmenter.path.stem}{method.SUFFIX}"
    wanted = (getattr(settings.of_method, name, None) or 0 for name in ("measure", "calibrate"))
    photos, held = some_photos(workspace, segmenter.header, max(64, *wanted))
    trained = replace(segmenter.trained(workspace, device.find_device("cpu")), photos=photos,
                      held=held, about=about_segmenter(workspace, segmenter))
    paths = method.export(trained, path, settings.of_method)
    write_card(trained, path, measured(trained, method, path, settings.of_method))
    return paths


def _scene(workspace: Workspace, settings: ExportSettings, method: Exporter) -> list[Path]:
    """Export the labels of a GeoTIFF: the named one, or else the only one."""
    found = results_of(workspace.path, "scenes")
    near = [path for path in (Path(settings.what), workspace.path / settings.what)
            if settings.what and path.is_file()]
    if not near and (settings.what or len(found) != 1):
        names = [path.relative_to(workspace.path).as_posix() for path in found]
        raise VplError(f"no labels of a GeoTIFF at {settings.what}" if settings.what else
                       f"{workspace.path} holds {len(found)} predicted GeoTIFFs, not one",
                       f"`what={names[0]!r}`" if names else "`predict(images=['SCENE.tif'])`")
    path = (near or found)[0]
    header = expect_header(path, "scenes")
    classes = workspace.classes
    if header.inputs.get("classes", workspace.classes_identity) != workspace.classes_identity:
        raise VplError(f"{path} was predicted with other classes than {workspace.path} has",
                       call_of(header))
    out = settings.out or workspace.path / "exports" / f"{path.stem}{method.SUFFIX}"
    return method.export(inputs.PredictedScene(path, classes), out, settings.of_method)


def _predictions(workspace: Workspace, settings: ExportSettings, method: Exporter) -> list[Path]:
    """Export the predictions of a split, or of photos given to `predict`."""
    assert settings.of_method is not None
    known = tuple(getattr(method, "CLASSES", workspace.classes))
    if workspace.classes != known:
        raise VplError(f"the workspace has {len(workspace.classes)} classes "
                       f"({', '.join(workspace.classes[:3])}, …), the server knows "
                       f"{len(known)} ({', '.join(known[:3])}, …)",
                       "`export('masks')` and `export('coco-rle')` take any classes")
    source, photos, split = _find(workspace, settings, method)
    workspace.check_classes(source.header, source.path)
    corrected = _corrections(workspace, photos, split) if getattr(
        settings.of_method, "corrections", False) else {}
    sizes, failed = _sizes(workspace, source, photos, split, corrected)
    if failed and hasattr(method, "CLASSES"):
        raise VplError(f"{_named(failed, len(photos))}: the server expects all",
                       f"{_mended(source, split)}; `export('masks')` exports the others")
    path = settings.out or workspace.path / "exports" / f"{source.name}-{split}{method.SUFFIX}"
    there = [photo for photo in photos if photo.id in sizes]
    predictions = inputs.Predictions(workspace, source.name, there, lambda: _each(
        workspace, source, there, sizes, corrected, f"export {settings.method}"), failed)
    of_method = make(type(settings.of_method), values_of(settings.of_method) | {"split": split},
                     settings.of_method.given)
    paths = method.export(predictions, path, of_method)
    if split in _splits(workspace):
        try:
            labelling.remember_exported(workspace, there, corrected, method, path)
        except (VplError, OSError) as error:
            console.warn(f"{workspace.path} cannot remember this export, so masks that nobody "
                         f"edits may count as corrections ({error})")
    if failed:
        raise PhotosFailed(f"{_named(failed, len(photos))}; the others are exported",
                           _mended(source, split), paths, sorted(failed))
    return paths


def _find(workspace: Workspace, settings: ExportSettings, method: Exporter
          ) -> tuple[InputFolder, list[Photo], str]:
    """Find the folder to export, its photos, and the name of their split or folder."""
    split: str = values_of(settings)["split"]
    kinds = (("predictions",) if method.EXPORTS == "predictions" else ("predictions", "masks"))
    try:
        source = find_folder(
            workspace.path, kinds, settings.what, split, f"`predict(split={split!r})`",
            preferred=[f"{name}{suffix}" for name in features.BEST_FIRST
                       for suffix in ("-crf", "")],
            full=method.FULL)
    except VplError:
        # An unknown split is the better error message.
        workspace.photos(split)
        raise
    own = source.header.options.get("split", split)
    if own in _splits(workspace) or not (named := panels.named_photos_of(source, workspace.path)):
        return source, workspace.photos(split), split
    root = workspace.path / workspace.root
    return source, [Photo(key, relative_to(path, root), (), (own,))
                    for key, path in named.items()], own


def _splits(workspace: Workspace) -> set[str]:
    return {name for photo in workspace.photos() for name in photo.splits}


def _corrections(workspace: Workspace, photos: Sequence[Photo], split: str) -> dict[str, Path]:
    """Return the paths of corrected masks by id; photos outside of splits have none."""
    if split not in _splits(workspace):
        return {}
    corrected = corrections.corrections_of(workspace, photos)
    masks.check_corrections(workspace, corrected)
    if corrected:
        console.note(counted(len(corrected), "corrected mask takes", "corrected masks take")
                     + " the place of computed ones; `corrections=False` exports those")
    return corrected


def _sizes(workspace: Workspace, source: InputFolder, photos: Sequence[Photo], split: str,
           corrected: Mapping[str, Path]) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Return (height, width) by id of the photos to export, and reasons by id of the others.

    A missing prediction of a photo that has not failed is an error.
    """
    there = [photo for photo in photos if photo.id in corrected or source.holds(photo.id)]
    failed = source.left_out(photo.id for photo in photos if photo.id not in corrected)
    if absent := {photo.id for photo in photos} - {photo.id for photo in there} - failed.keys():
        raise VplError(part_of(len(absent), len(photos), f"photos of `{split}`", "has", "have")
                       + f" no prediction in {source.path}, such as {min(absent)}",
                       call_of(source.header))
    if there:
        check_there([workspace.image_path(photo) for photo in there])
    sizes = {}
    for photo in there:
        path = workspace.image_path(photo)
        try:
            sizes[photo.id] = photo_size(path)
        except OSError as error:
            failed[photo.id] = describe_failure(path, error)
    if not sizes:
        raise VplError(_named(failed, len(photos)), _mended(source, split))
    return sizes, failed


def _named(failed: Mapping[str, str], total: int) -> str:
    """Format the photos that are not exported, with the reasons."""
    reasons = [why if key in why else f"{key}: {why}" for key, why in sorted(failed.items())]
    return (part_of(len(failed), total, "photos", "cannot", "cannot")
            + f" be exported: {first_few(reasons, '; ')}")


def _mended(source: InputFolder, split: str) -> str:
    """Return the hint for exporting failed photos."""
    if "images" in source.header.sources or source.header.call.get("images"):
        return "fix or remove them, and predict again"
    return (f"fix them, and run `extract(split={split!r})`, `update()` and the export again; or "
            "remove them and their rows, and prepare again")


def _each(workspace: Workspace, source: InputFolder, photos: Sequence[Photo],
          sizes: Mapping[str, tuple[int, int]], corrected: Mapping[str, Path], title: str
          ) -> Iterator[tuple[Photo, npt.NDArray[np.uint8]]]:
    """Yield each photo with its labels, after checking their size and classes."""
    last, remake = len(workspace.classes), f"{call_of(source.header)} with `overwrite=True`"
    for photo in photo_work.tracked(title, photos, len(photos)):
        if photo.id in corrected:
            yield photo, masks.read_mask(corrected[photo.id], workspace.image_path(photo), last)
            continue
        path, size = source.path_of(photo.id), sizes[photo.id]
        found = size_of_labels(path)
        if found != size:
            raise VplError(f"{path} is {found[0]}×{found[1]} (height×width), its photo "
                           f"{size[0]}×{size[1]}", remake)
        labels = source.read_labels(photo.id)
        highest = labels[labels != workspace.ignore].max(initial=0)
        if highest > last:
            raise VplError(f"{path} has the label {highest}, above the last class {last}", remake)
        yield photo, labels
