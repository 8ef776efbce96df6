"""`vpltool show`: a sheet of pictures. Reads the true masks, to show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.formats import InputFolder, Photo, Workspace, find_folder, open_workspace, voc_palette
from vpltool.formats.storage import atomic_path
from vpltool.options import Out, Quiet, Split
from vpltool.stage import Stage
from vpltool.stages._artifacts import read_known_photo
from vpltool.stages._truth import read_truth

if TYPE_CHECKING:
    from vpltool.pictures.overlays import Rgb

STAGE = Stage(order=92, panel="4. Scores and pictures",
              reads=("cams", "masks", "predictions", "probabilities"), writes=())


def show(
    ctx: typer.Context,
    what: Annotated[list[str] | None, typer.Argument(
        help="cams/NAME, masks/NAME, predictions/NAME or folders; default: all there are.")] = None,
    split: Split = "train",
    ids: Annotated[str, typer.Option(
        "--id", metavar="LIST", help="Ids of photos, separated by commas.")] = "",
    limit: Annotated[int, typer.Option(
        "--limit", min=1, help="Number of photos, spread over the split.")] = 6,
    truth: Annotated[bool, typer.Option("--truth/--no-truth", help="Show the true masks.")] = True,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Draw a sheet of photos, maps, masks, predictions and the truth.

    Of CAMs, the first tag's map is shown.

    Example: vpltool show cams/text cams/vision masks/vision --limit 8
    """
    console.set_quiet(quiet)
    workspace = open_workspace(ctx.obj)
    photos = _choose(workspace, split, ids, limit)
    kinds = ("cams", "masks", "predictions", "probabilities")
    names = what or sorted(str(path.parent.parent.relative_to(ctx.obj)) for kind in kinds[:3]
                           for path in ctx.obj.glob(f"{kind}/*/{split}/artifact.json"))
    sources = [(name, find_folder(ctx.obj, kinds[:3], name, split, kinds, "vpltool cam"))
               for name in names]

    from vpltool.pictures.overlays import sheet

    page = sheet(_row(workspace, photo, sources, truth=truth) for photo in photos)
    path = out or ctx.obj / "pictures" / f"{split}.png"
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG")
    print(path)


def _row(workspace: Workspace, photo: Photo, sources: list[tuple[str, InputFolder]], *,
         truth: bool) -> list[tuple[str, Rgb]]:
    """A photo with all that there is of it, each with its title."""
    from vpltool.pictures.overlays import labels_over

    picture = read_known_photo(workspace, photo)
    row = [(f"{photo.id}: {' '.join(photo.labels)}", picture)]
    row += [(name, _panel(source, photo, picture)) for name, source in sources
            if source.path_of(photo.id).exists()]
    if truth and photo.mask:
        labels = read_truth(workspace, photo, picture.shape[:2])
        row.append(("truth", labels_over(picture, labels, voc_palette())))
    return row


def _choose(workspace: Workspace, split: str, ids: str, limit: int) -> list[Photo]:
    photos = workspace.photos(split)
    if not ids:
        return photos[:: max(1, len(photos) // limit)][:limit]
    known = {photo.id: photo for photo in photos}
    for key in ids.split(","):
        if key not in known:
            raise VplError(f"no photo `{key}` in the split `{split}`", near_name(key, known))
    return [known[key] for key in ids.split(",")]


def _panel(source: InputFolder, photo: Photo, picture: Rgb) -> Rgb:
    from vpltool.pictures.overlays import heat_over, labels_over

    if source.kind in ("masks", "predictions"):
        return labels_over(picture, source.read_labels(photo.id), voc_palette())
    cam = source.read_tensors(photo.id)["cam"].float()
    return heat_over(picture, cam[0].numpy()) if len(cam) else picture
