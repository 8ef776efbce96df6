"""`vpltool export voc-server|coco-rle|coco-panoptic`: predictions for evaluation servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpltool import console
from vpltool.datasets.words import COCO, COCO_IDS, VOC, Vocabulary
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Photo, Workspace, find_folder, open_workspace
from vpltool.options import Out, Quiet, Split
from vpltool.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

STAGE = Stage(order=98, panel="4. Scores and pictures", reads=("predictions", "masks"), writes=())

app = typer.Typer(
    help="Write predictions in the formats of evaluation servers. Exports are always written anew.",
    short_help="Write predictions as evaluation servers take them.", no_args_is_help=True)

What = Annotated[str, typer.Option(
    metavar="PATH-OR-NAME", help="predictions/NAME, masks/NAME or a folder; default: the best "
                                 "predictions of the split.")]


@app.command("voc-server")
def voc_server(
    ctx: typer.Context, what: What = "", split: Split = "test", out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Pack predictions for VOC's server: results/VOC2012/Segmentation/comp6_test_cls/ID.png.

    comp6 is the competition with other training data than VOC's own, as CLIP's are.

    Example: vpltool export voc-server --split test
    """
    console.set_quiet(quiet)
    chosen = _choose(ctx.obj, what, split, VOC)
    path = out or _place(chosen, split, ".tgz")

    from vpltool.formats.archives import write_tgz
    from vpltool.formats.labels import png_bytes

    write_tgz(path, ((f"results/VOC2012/Segmentation/comp6_test_cls/{photo.id}.png",
                      png_bytes(labels)) for photo, labels in _each(chosen, "voc-server")))
    print(path)


@app.command("coco-rle")
def coco_rle(
    ctx: typer.Context, what: What = "", split: Split = "val", out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Write predictions as COCO's results JSON: a region for each class of a photo.

    The regions are run lengths, as in COCO's stuff task. Needs pycocotools.

    Example: vpltool export coco-rle --split val
    """
    console.set_quiet(quiet)

    from vpltool.core.instances import check_pycocotools, run_lengths

    check_pycocotools()
    chosen = _choose(ctx.obj, what, split, COCO)
    numbers = {photo.id: _number_of(photo) for photo in chosen.photos}
    path = out or _place(chosen, split, "-rle.json")
    from vpltool.formats.json_stream import write_array

    write_array(path, ({"image_id": numbers[photo.id], "category_id": COCO_IDS[label - 1],
                        "segmentation": run_lengths(labels == label)}
                       for photo, labels in _each(chosen, "coco-rle")
                       for label in _classes_in(labels)))
    print(path)


@app.command("coco-panoptic")
def coco_panoptic(
    ctx: typer.Context, what: What = "", split: Split = "val", out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Pack predictions in COCO's panoptic format: NAME.json, and NAME/NUMBER.png.

    A semantic segmenter knows no instances: each class of a photo is one segment.

    Example: vpltool export coco-panoptic --split val
    """
    console.set_quiet(quiet)
    chosen = _choose(ctx.obj, what, split, COCO)
    numbers = {photo.id: _number_of(photo) for photo in chosen.photos}
    path = out or _place(chosen, split, "-panoptic.zip")

    from vpltool.formats.archives import write_zip

    write_zip(path, _panoptic_members(chosen, numbers, path.stem))
    print(path)


def _panoptic_members(
    chosen: _Chosen, numbers: dict[str, int], name: str
) -> Iterator[tuple[str, bytes]]:
    import json

    import numpy as np

    from vpltool.formats.labels import png_bytes

    entries: list[dict[str, Any]] = []
    # A segment's id is red + 256 green + 65536 blue: category ids fit into red; 0 is nothing.
    ids = np.zeros(256, np.uint8)
    ids[1 : len(COCO_IDS) + 1] = COCO_IDS
    for photo, labels in _each(chosen, "coco-panoptic"):
        segments = np.zeros((*labels.shape, 3), np.uint8)
        segments[..., 0] = ids[labels]
        file = f"{numbers[photo.id]:012}.png"
        entries.append({"image_id": numbers[photo.id], "file_name": file, "segments_info": [
            {"id": COCO_IDS[label - 1], "category_id": COCO_IDS[label - 1]}
            for label in _classes_in(labels)]})
        yield f"{name}/{file}", png_bytes(segments)
    yield f"{name}.json", json.dumps({"annotations": entries}).encode()


@dataclass(frozen=True)
class _Chosen:
    workspace: Workspace
    source: InputFolder
    photos: list[Photo]


def _choose(work: Path, what: str, split: str, vocabulary: Vocabulary) -> _Chosen:
    """Find the predictions, and check that there is one for each photo.

    Raises:
        VplError: other classes than the server's, or photos without a prediction.
    """
    workspace = open_workspace(work)
    if workspace.classes != vocabulary.classes:
        raise VplError(f"the workspace has {len(workspace.classes)} classes "
                       f"({', '.join(workspace.classes[:3])}, …), the server knows "
                       f"{len(vocabulary.classes)} ({', '.join(vocabulary.classes[:3])}, …)",
                       "prepare with the data set's own classes, in their order")
    photos = workspace.photos(split)
    source = find_folder(
        work, ("predictions", "masks"), what, split, ("predictions", "masks"),
        f"vpltool predict --split {split}",
        preferred=[f"{name}{suffix}" for name in (
            "vision-refined", "vision", "text-refined", "text") for suffix in ("-crf", "")])
    workspace.check_classes(source.header, source.path)
    absent = [photo.id for photo in photos if not source.path_of(photo.id).exists()]
    if absent:
        why = source.failed.get(absent[0], "")
        raise VplError(f"{len(absent)} of {len(photos)} photos of `{split}` have no prediction in "
                       f"{source.path}, such as {absent[0]}{f' ({why})' if why else ''}",
                       f"vpltool {source.header.command} --split {split}")
    return _Chosen(workspace, source, photos)


def _place(chosen: _Chosen, split: str, suffix: str) -> Path:
    return chosen.workspace.path / "exports" / f"{chosen.source.name}-{split}{suffix}"


def _each(chosen: _Chosen, title: str) -> Iterator[tuple[Photo, npt.NDArray[np.uint8]]]:
    """Each photo's labels, 255 as background, as `eval` counts it.

    Raises:
        VplError: labels are damaged, of another size than the photo, or no class.
    """
    from vpltool.core.photos import photo_size

    classes = len(chosen.workspace.classes)
    with console.progress(f"export {title}", len(chosen.photos)) as advance:
        for photo in chosen.photos:
            labels = chosen.source.read_labels(photo.id)
            labels[labels == chosen.workspace.ignore] = 0
            path = chosen.source.path_of(photo.id)
            again = f"vpltool {chosen.source.header.command} --overwrite"
            if labels.max(initial=0) > classes:
                raise VplError(f"{path} has the label {labels.max()}, above the last class "
                               f"{classes}", again)
            try:
                size = photo_size(chosen.workspace.image_path(photo))
            except OSError as error:
                raise VplError(f"{photo.id}: {error}", "servers take no other size than the "
                               "photo's, so it must be there") from error
            if labels.shape != size:
                raise VplError(f"{path} is {labels.shape[0]}×{labels.shape[1]} (height×width), "
                               f"its photo {size[0]}×{size[1]}", again)
            yield photo, labels
            advance()


def _classes_in(labels: npt.NDArray[np.uint8]) -> list[int]:
    import numpy as np

    return [int(label) for label in np.unique(labels) if label]


def _number_of(photo: Photo) -> int:
    """COCO's number of a photo: the digits at the end of its id.

    Raises:
        VplError: it has none.
    """
    digits = re.search(r"\d+$", photo.id)
    if digits is None:
        raise VplError(f"photo {photo.id} has no number, as COCO's have at the end of their names",
                       "prepare with: vpltool prepare coco FOLDER")
    return int(digits[0])
