"""Figure 1: text CAMs beside vision CAMs, in the photos where the text strays most."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpltool import console
from vpltool.engine.photos import read_known_photo
from vpltool.errors import VplError, near_name
from vpltool.formats import InputFolder, Photo, Workspace, find_folder, open_workspace
from vpltool.formats.atomic import atomic_path
from vpltool.formats.input_folders import names_in
from vpltool.formats.kinds import folder_of
from vpltool.lazy import Image, ImageDraw, ImageFont, Tensor
from vpltool.pictures.overlays import Rgb, heat_over


def figure1(options: argparse.Namespace) -> Path:
    """Draw text CAMs against vision CAMs.

    Args:
        options: see `__main__`.

    Returns:
        the picture.

    Raises:
        VplError: CAMs or photos are missing.
    """
    workspace = open_workspace(options.work)
    text, vision = find_pair(options.work, options.text, options.vision, options.split)
    for source in (text, vision):
        workspace.check_classes(source.header, source.path)
    photos = workspace.photos(options.split)
    ids = set(text.available(vision.available(photo.id for photo in photos)))
    photos = [photo for photo in photos if photo.id in ids]
    chosen = (_named_photos(photos, options.id, workspace) if options.id
              else _choose_photos(photos, text, vision, options.limit))
    columns = []
    for photo, owner in chosen:
        picture = read_known_photo(workspace, photo)
        panels = [picture]
        for source in (text, vision):
            tensors = source.read_tensors(photo.id)
            cam = tensors["cam"][tensors["classes"].tolist().index(owner)].float().numpy()
            panels.append(heat_over(picture, cam))
        columns.append((workspace.class_name(owner), panels))
        console.note(f"{photo.id}: {workspace.class_name(owner)}")
    path: Path = options.out or options.work / "figures/figure1.png"
    with atomic_path(path) as temporary:
        _strip(columns, ["photo", "text CAM", "vision CAM"]).save(temporary, format="PNG")
    return path


def stray_area(text: Tensor, vision: Tensor) -> float:
    """How much of a photo the text CAM (h, w) lights up beyond the vision CAM, in [0, 1]."""
    return float((text - vision).clamp_min(0).mean())


def find_pair(work: Path, text: str, vision: str, split: str) -> tuple[InputFolder, InputFolder]:
    """CAMs of text and of vision by the same method, named or found.

    Raises:
        VplError: there is no such pair.
    """
    if not (text and vision):
        names = names_in(folder_of(work, "cams"), split)
        pairs = [(f"text{method}", name) for method in ("-dense", "-refined", "")
                 for name in names if f"text{method}" in names
                 and name.startswith("vision") and name.endswith(method)]
        if not pairs:
            raise VplError(f"no text and vision CAMs of one method for `{split}` in {work}",
                           f"`cam(prototypes='vision', split={split!r})` and the same with text; "
                           "or --split, or --text and --vision")
        text, vision = text or pairs[0][0], vision or pairs[0][1]
    first, second = (find_folder(work, ("cams",), name, split, ("cams",), f"`cam(split={split!r})`")
                     for name in (text, vision))
    return first, second


def _choose_photos(photos: Sequence[Photo], text: InputFolder, vision: InputFolder, limit: int
                   ) -> list[tuple[Photo, int]]:
    """Photos and classes in which the text strays most: each photo once, each class once."""
    found = []
    for photo in photos:
        pair = [source.read_tensors(photo.id) for source in (text, vision)]
        for position, owner in enumerate(pair[0]["classes"].tolist()):
            maps = [tensors["cam"][position].float() for tensors in pair]
            # A vision CAM that found nothing says nothing about where the text strays.
            if float(maps[1].max()) >= 0.5:
                found.append((-stray_area(*maps), photo.id, owner, photo))
    if not found:
        raise VplError(f"no CAM in {vision.path} reaches 0.5", "name others: --vision NAME")
    chosen: list[tuple[Photo, int]] = []
    for _, _, owner, photo in sorted(found, key=lambda entry: entry[:3]):
        if all(photo != other and owner != taken for other, taken in chosen):
            chosen.append((photo, owner))
    return chosen[:limit]


def _named_photos(photos: Sequence[Photo], ids: str, workspace: Workspace
                  ) -> list[tuple[Photo, int]]:
    """The photos of `--id A,B:CLASS`, with the named class or the first tag."""
    known = {photo.id: photo for photo in photos}
    chosen = []
    for entry in ids.split(","):
        key, _, label = entry.partition(":")
        if key not in known:
            raise VplError(f"no photo `{key}` with both CAMs", near_name(key, known))
        tags = known[key].tags
        if not tags or (label and label not in tags):
            raise VplError(f"`{key}` is not tagged {label}".rstrip(), near_name(label, tags))
        chosen.append((known[key], workspace.index_of(label or tags[0])))
    return chosen


def _strip(columns: Sequence[tuple[str, Sequence[Rgb]]], rows: Sequence[str], height: int = 300
           ) -> Image.Image:
    """Pictures of one height in columns with titles; rows have names, on the left."""
    font, gap, head, side = ImageFont.load_default(26), 8, 46, 46
    widths = [round(pictures[0].shape[1] * height / pictures[0].shape[0])
              for _, pictures in columns]
    page = Image.new("RGB", (side + sum(widths) + gap * len(widths),
                             head + (height + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(page)
    left = side
    for (title, pictures), width in zip(columns, widths, strict=True):
        draw.text((left + width / 2, head - 10), title, fill="black", font=font, anchor="ms")
        for row, picture in enumerate(pictures):
            scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            page.paste(scaled, (left, head + row * (height + gap)))
        left += width + gap
    for row, name in enumerate(rows):
        label = Image.new("RGB", (height, side), "white")
        ImageDraw.Draw(label).text((height / 2, side - 14), name, fill="black", font=font,
                                   anchor="ms")
        page.paste(label.rotate(90, expand=True), (0, head + row * (height + gap)))
    return page
