"""The picture of a comparison: the same photos under all methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from vpltool.core.metrics import labels_at
from vpltool.core.photos import read_photo
from vpltool.errors import VplError
from vpltool.formats import Photo, find_folder, open_workspace, read_json
from vpltool.lazy import F, Image
from vpltool.papers.comparison.measuring import Measured, Setup, score_path
from vpltool.pictures.overlays import Rgb, SheetPanel, classes_in, fit_panel, labels_over, sheet

PHOTOS = 3
"""How many photos each method is shown on."""

_ACROSS = 2
"""Methods side by side."""

_WIDTH = 150
"""Width of a photo in the picture, in pixels."""


def choose_photos(photos: Sequence[Photo], ids: Sequence[str]) -> list[Photo]:
    """The photos that are named; else photos spread over all, of several classes where there are.

    Raises:
        VplError: none has one of these ids.
    """
    if ids:
        known = {photo.id: photo for photo in photos}
        if strange := [name for name in ids if name not in known]:
            raise VplError(f"no photo `{strange[0]}` in the split that is scored",
                           f"such as `{photos[0].id}`")
        return [known[name] for name in ids]
    mixed = [photo for photo in photos if len(photo.tags) > 1]
    found = mixed if len(mixed) >= PHOTOS else list(photos)
    return found[::max(1, len(found) // PHOTOS)][:PHOTOS]


def draw_methods(setup: Setup, made: Mapping[str, Measured], ids: Sequence[str] = ()
                 ) -> Image.Image:
    """Draw each method's last maps as labels, cut as they were scored; the photos come first.

    Args:
        setup: where the maps and scores lie.
        made: name of a method to what was measured; of one without CAMs nothing is drawn.
        ids: photos of the split that is scored; none: some of several classes.

    Returns:
        a sheet with two methods side by side, and the colours of the classes below.

    Raises:
        VplError: a photo that is named is not there, or maps cannot be read.
    """
    workspace = open_workspace(setup.work.path)
    photos = choose_photos(workspace.photos(setup.score), ids)
    pictures = {photo.id: fit_panel(read_photo(workspace.image_path(photo)), _WIDTH)
                for photo in photos}
    blocks = [[SheetPanel("photos" if not number else "", picture)
               for number, picture in enumerate(pictures.values())]]
    blocks += [list(_panels(setup, name, measured, pictures))
               for name, measured in made.items() if measured.cams]
    return sheet((sum(blocks[start:start + _ACROSS], []) for start in
                  range(0, len(blocks), _ACROSS)),
                 dict(enumerate(("background", *workspace.classes))), _WIDTH)


def _panels(setup: Setup, name: str, measured: Measured, pictures: Mapping[str, Rgb]
            ) -> Iterator[SheetPanel]:
    """A method's labels of each photo, by its first seed."""
    threshold = float(read_json(score_path(setup, f"{measured.cams}-cut"), "")["threshold"])
    source = find_folder(setup.work.path, ("cams",), measured.cams, setup.score, ("cams",),
                         "run the comparison again")
    column = next(name for name in (f"refined, {setup.score}", f"CAM, {setup.score}")
                  if name in measured.miou)
    title = f"{name}: {fmean(measured.miou[column]):.1f}"
    for key, picture in pictures.items():
        tensors = source.read_tensors(key)
        maps = F.interpolate(tensors["cam"].float()[None], size=picture.shape[:2], mode="bilinear",
                             align_corners=False)[0]
        labels = labels_at(maps.numpy(), tensors["classes"].tolist(), threshold)
        yield SheetPanel(title, labels_over(picture, labels), classes_in(labels))
        title = ""
