"""`export`: predictions, or a segmenter, as evaluation servers and other tools take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.errors import VplError, part_of
from vpltool.formats import InputFolder, Photo, Workspace, find_folder
from vpltool.formats.manifest import again
from vpltool.methods import find_method
from vpltool.methods.inputs import Predictions
from vpltool.settings import Settings, setting, values_of
from vpltool.stage import Stage
from vpltool.stages import _inputs
from vpltool.stages._running import load_trained
from vpltool.stages._segmenters import find_decoder, segmenter_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Settings that all formats share; the split is the method's, since its default is."""

    method: str = setting(help="Format.", metavar="NAME")
    what: str = setting("", "What to export: predictions/NAME, masks/NAME or a folder; for a "
                            "segmenter, its decoder; default: the first found of vision-refined, "
                            "vision, text-refined, text.", metavar="PATH-OR-NAME")
    out: Path | None = setting(None, "Output path, instead of the default.", metavar="PATH",
                               short="-o", record="never")


STAGE = Stage(order=98, panel="4. Scores and pictures", reads=("predictions", "masks", "decoder"),
              writes=("bundle",), settings=ExportSettings, methods="exports", subcommands=True)


def run(workspace: Workspace, settings: ExportSettings) -> list[Path]:
    """Export predictions or a segmenter in the formats of other tools and servers.

    Exports are always rewritten.

    Args:
        workspace: where predictions and decoders are found and exports go.
        settings: what, in which format.

    Returns:
        what was written.

    Raises:
        VplError: a photo has no prediction, or one that does not fit it, or the server knows other
            classes; or there is no decoder, or a package is missing.
    """
    method = find_method("exports", settings.method).load()
    if hasattr(method, "check"):
        method.check(settings.of_method)
    exported = _segmenter if getattr(method, "EXPORTS", "") == "segmenter" else _predictions
    return exported(workspace, settings, method)


def _segmenter(workspace: Workspace, settings: ExportSettings, method: Any) -> list[Path]:
    """Export a trained decoder together with its encoder."""
    from vpltool.parallel.device import find_device

    decoder = find_decoder(workspace.path, settings.what)
    workspace.check_classes(segmenter_header(decoder), decoder)
    path = settings.out or workspace.path / "exports" / f"{decoder.stem}{method.SUFFIX}"
    trained = load_trained(decoder, workspace, find_device("cpu"))
    paths: list[Path] = method.export(trained, path, settings.of_method)
    return paths


def _predictions(workspace: Workspace, settings: ExportSettings, method: Any) -> list[Path]:
    """Export the predictions of a split."""
    split = values_of(settings)["split"]
    _check_classes(workspace, getattr(method, "CLASSES", workspace.classes))
    photos = workspace.photos(split)
    kinds = (("predictions",) if getattr(method, "EXPORTS", "") == "predictions"
             else ("predictions", "masks"))
    source = find_folder(
        workspace.path, kinds, settings.what, split, kinds, f"`predict(split={split!r})`",
        preferred=[f"{name}{suffix}" for name in _inputs.BEST_FIRST for suffix in ("-crf", "")],
        full=getattr(method, "FULL", False))
    workspace.check_classes(source.header, source.path)
    _check_complete(source, photos, split)
    path = settings.out or workspace.path / "exports" / f"{source.name}-{split}{method.SUFFIX}"
    predictions = Predictions(workspace, source.name, photos, lambda: _each(
        workspace, source, photos, f"export {settings.method}"))
    paths: list[Path] = method.export(predictions, path, settings.of_method)
    return paths


def _check_classes(workspace: Workspace, known: Sequence[str]) -> None:
    """Check that the workspace has the classes that a server knows.

    Raises:
        VplError: it has others; the hint names the formats that take any.
    """
    if workspace.classes != tuple(known):
        raise VplError(f"the workspace has {len(workspace.classes)} classes "
                       f"({', '.join(workspace.classes[:3])}, …), the server knows "
                       f"{len(known)} ({', '.join(known[:3])}, …)",
                       "`export('masks')` and `export('coco-rle')` take any classes")


def _check_complete(source: InputFolder, photos: Sequence[Photo], split: str) -> None:
    absent = [photo.id for photo in photos if not source.path_of(photo.id).exists()]
    if absent:
        why = source.failed.get(absent[0], "")
        raise VplError(part_of(len(absent), len(photos), f"photos of `{split}`", "has", "have")
                       + f" no prediction in {source.path}, such as {absent[0]}"
                       + (f" ({why})" if why else ""),
                       again(source.header))


def _each(workspace: Workspace, source: InputFolder, photos: Sequence[Photo], title: str
          ) -> Iterator[tuple[Photo, npt.NDArray[np.uint8]]]:
    """Yield each photo with its labels.

    Raises:
        VplError: labels are damaged, of another size than the photo, or no class.
    """
    from vpltool.core.photos import photo_size

    last, remake = len(workspace.classes), f"{again(source.header)} with `overwrite=True`"
    with console.progress(title, len(photos)) as advance:
        for photo in photos:
            path, labels = source.path_of(photo.id), source.read_labels(photo.id)
            highest = labels[labels != workspace.ignore].max(initial=0)
            if highest > last:
                raise VplError(f"{path} has the label {highest}, above the last class {last}",
                               remake)
            try:
                size = photo_size(workspace.image_path(photo))
            except OSError as error:
                raise VplError(f"{photo.id}: {error}", "a prediction must have the photo's size, "
                                                       "so the photo must be there") from error
            if labels.shape != size:
                raise VplError(f"{path} is {labels.shape[0]}×{labels.shape[1]} (height×width), "
                               f"its photo {size[0]}×{size[1]}", remake)
            yield photo, labels
            advance()
