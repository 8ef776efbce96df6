"""Figures 1 and 4 of VPL (AAAI 2025) from any workspace; no true mask is opened.

`figure1` sets text CAMs beside vision CAMs: of each class the photo in which the text lights up
most that the vision CAM leaves dark, such as the water around a boat, and of these the clearest.
`figure4` shows region embeddings of two decoders, without and with the regional semantic contrast,
by t-SNE (needs scikit-learn), and the modality gap. Regions are those of the pseudo masks. What the
pictures suggest is also measured, before t-SNE, printed, and stored beside them.

    python -m vpltool.papers.figures figure1 work/demo
    python -m vpltool.papers.figures figure4 work/demo --decoders decoder-0-0,decoder-1-0
    python -m vpltool.papers.figures figure4 work/voc --features work/voc/layers/val
"""

from __future__ import annotations

import argparse
import sys
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
from vpltool.papers.figure4 import figure4
from vpltool.papers.program import run_program
from vpltool.pictures.overlays import Rgb, heat_over


def _pair_of_names(text: str) -> str:
    """Type of `--decoders`: two names."""
    if len(text.split(",")) != 2:
        raise argparse.ArgumentTypeError("two names with a comma between them")
    return text


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vpltool.papers.figures",
                                     description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="FIGURE")
    first = commands.add_parser("figure1", help="text CAM against vision CAM")
    first.set_defaults(draw=figure1)
    first.add_argument("--text", default="", help="text CAMs; default: text-dense, text-refined or "
                                                  "text, with vision CAMs of the same method")
    first.add_argument("--vision", default="", help="vision CAMs")
    first.add_argument("--id", default="", metavar="LIST",
                       help="photos ID or ID:CLASS, separated by commas, instead of the clearest")
    first.add_argument("--limit", type=int, default=6, help="number of photos")
    fourth = commands.add_parser("figure4", help="region embeddings by t-SNE, and the modality gap")
    fourth.set_defaults(draw=figure4)
    fourth.add_argument("--decoders", type=_pair_of_names,
                        help="two decoders, without and with RSC; default: those of make demo, or "
                             "of the tables")
    fourth.add_argument("--features", type=Path, metavar="DIR",
                        help="features of the split, with layers; default: WORK/features/SPLIT")
    fourth.add_argument("--masks", default="", help="pseudo masks; default: those learned from")
    fourth.add_argument("--prototypes", default="", help="of the gap; default: text and those of "
                                                         "the second decoder")
    fourth.add_argument("--cams", default="", help="that mark the gap's regions; default: those of "
                                                   "the masks' name")
    fourth.add_argument("--phi", type=float, default=0.4, help="as vpltool gap has it")
    for command in (first, fourth):
        command.add_argument("work", type=Path, help="the workspace")
        command.add_argument("--split", default="val")
        command.add_argument("--out", type=Path, help="default: WORK/figures/FIGURE.png")
    return parser.parse_args(argv)


def figure1(options: argparse.Namespace) -> Path:
    """Draw text CAMs against vision CAMs; return the picture.

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
    first, second = (find_folder(work, ("cams",), name, split, f"`cam(split={split!r})`")
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


def main(argv: list[str] | None = None) -> int:
    """Draw, and print what was written; 0, or 1 with a line that says what to do."""
    options = _options(argv)
    return run_program(options.work, lambda: print(options.draw(options)))


if __name__ == "__main__":
    sys.exit(main())
