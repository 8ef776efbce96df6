"""Figures 1 and 4 of VPL (AAAI 2025) from any workspace; no true mask is opened.

`figure1` sets text CAMs beside vision CAMs: of each class the photo in which the text lights up
most that the vision CAM leaves dark, such as the water around a boat, and of these the clearest.
`figure4` shows region embeddings of two decoders, without and with the regional semantic contrast,
by t-SNE (needs scikit-learn), and the modality gap. Regions are those of the pseudo masks. What the
pictures suggest is also measured, before t-SNE, printed, and stored beside them.

    python benchmarks/figures.py figure1 work/demo
    python benchmarks/figures.py figure4 work/demo --decoders decoder-0-0,decoder-1-0
    python benchmarks/figures.py figure4 work/voc --features work/voc/layers/val
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from vpltool import console
from vpltool.core.decoder import Decoder, layers_of
from vpltool.core.training import labels_at
from vpltool.errors import VplError, near_name
from vpltool.formats import (
    Header,
    InputFolder,
    Photo,
    Workspace,
    find_folder,
    identity_of_file,
    open_input,
    open_workspace,
    read_tensors,
    write_json,
)
from vpltool.formats.storage import atomic_path
from vpltool.pictures.overlays import Rgb, heat_over
from vpltool.pictures.scatter import Marks, Panel, draw_panels
from vpltool.stages import _artifacts
from vpltool.stages._regions import open_features, open_regions
from vpltool.stages.gap import measure, panel_of, read_sets

MOST_POINTS = 3000

DECODERS = ("decoder-0-0,decoder-1-0", "decoder-ce-0,decoder-0")
"""Without and with the contrast, as `make demo` and benchmarks/tables.py name them."""


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG and print its path."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
    print(path)


# Figure 1

def stray_area(text: torch.Tensor, vision: torch.Tensor) -> float:
    """How much of a photo the text CAM (h, w) lights up beyond the vision CAM, in [0, 1]."""
    return float((text - vision).clamp_min(0).mean())


def find_pair(work: Path, text: str, vision: str, split: str) -> tuple[InputFolder, InputFolder]:
    """CAMs of text and of vision by the same method, named or found.

    Raises:
        VplError: there is no such pair.
    """
    if not (text and vision):
        names = {path.parent.parent.name for path in work.glob(f"cams/*/{split}/artifact.json")}
        pairs = [(f"text{method}", name) for method in ("-dense", "-refined", "")
                 for name in sorted(names) if f"text{method}" in names
                 and name.startswith("vision") and name.endswith(method)]
        if not pairs:
            raise VplError(f"no text and vision CAMs of one method for `{split}` in {work}",
                           f"vpltool cam --prototypes vision --split {split} and the same with "
                           "text; or --split, or --text and --vision")
        text, vision = text or pairs[0][0], vision or pairs[0][1]
    first, second = (find_folder(work, ("cams",), name, split, ("cams",), "vpltool cam")
                     for name in (text, vision))
    return first, second


def choose_photos(photos: Sequence[Photo], text: InputFolder, vision: InputFolder, limit: int
                  ) -> list[tuple[Photo, int]]:
    """Photos and classes in which the text strays most: each photo once, each class once."""
    found = []
    for photo in photos:
        pair = [source.read_tensors(photo.id) for source in (text, vision)]
        for place, owner in enumerate(pair[0]["classes"].tolist()):
            maps = [tensors["cam"][place].float() for tensors in pair]
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


def named_photos(photos: Sequence[Photo], ids: str, workspace: Workspace
                 ) -> list[tuple[Photo, int]]:
    """The photos of `--id A,B:CLASS`, with the named class or the first tag."""
    known = {photo.id: photo for photo in photos}
    chosen = []
    for entry in ids.split(","):
        key, _, label = entry.partition(":")
        if key not in known:
            raise VplError(f"no photo `{key}` with both CAMs", near_name(key, known))
        tags = known[key].labels
        if not tags or (label and label not in tags):
            raise VplError(f"`{key}` is not tagged {label}".rstrip(), near_name(label, tags))
        chosen.append((known[key], workspace.index_of(label or tags[0])))
    return chosen


def strip(columns: Sequence[tuple[str, Sequence[Rgb]]], rows: Sequence[str], height: int = 300
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


def figure1(options: argparse.Namespace) -> None:
    """Text CAM against vision CAM."""
    workspace = open_workspace(options.work)
    text, vision = find_pair(options.work, options.text, options.vision, options.split)
    for source in (text, vision):
        workspace.check_classes(source.header, source.path)
    photos = workspace.photos(options.split)
    ids = set(text.available(vision.available(photo.id for photo in photos)))
    photos = [photo for photo in photos if photo.id in ids]
    chosen = (named_photos(photos, options.id, workspace) if options.id
              else choose_photos(photos, text, vision, options.limit))
    columns = []
    for photo, owner in chosen:
        picture = _artifacts.read_known_photo(workspace, photo)
        panels = [picture]
        for source in (text, vision):
            tensors = source.read_tensors(photo.id)
            cam = tensors["cam"][tensors["classes"].tolist().index(owner)].float().numpy()
            panels.append(heat_over(picture, cam))
        columns.append((workspace.class_name(owner), panels))
        console.note(f"{photo.id}: {workspace.class_name(owner)}")
    rows = ["photo", "text CAM", "vision CAM"]
    save(strip(columns, rows), options.out or options.work / "figures/figure1.png")


# Figure 4

def read_decoder(work: Path, name: str) -> tuple[Header, Decoder, Path]:
    """Read a trained decoder by NAME or path."""
    named = work / "decoder" / f"{name}.safetensors"
    path = named if named.exists() or not name.endswith(".safetensors") else Path(name)
    if not path.exists():
        names = [found.stem for found in (work / "decoder").glob("*.safetensors")]
        raise VplError(f"no decoder called `{name}`",
                       near_name(name, names) if names else "vpltool train-decoder")
    header, tensors = read_tensors(path, "decoder")
    decoder = Decoder.from_config(header.facts["config"])
    decoder.load_state_dict(tensors)
    return header, decoder.eval().requires_grad_(False), path


def pair_of(work: Path, named: str | None) -> list[str]:
    """The two decoders: named, or the first usual pair that is there."""
    pairs = [named] if named else DECODERS
    for pair in pairs:
        names = pair.split(",")
        if all((work / "decoder" / f"{name}.safetensors").exists() for name in names):
            return names
    return pairs[0].split(",")


def find_masks(work: Path, name: str, split: str, decoder: Header) -> InputFolder:
    """Pseudo masks of a split: named, or of the name that the decoder learned from."""
    if not name:
        for manifest in sorted((work / "masks").glob("*/*/artifact.json")):
            if open_input(manifest.parent, ("masks",)).identity == decoder.inputs["masks"]:
                name = manifest.parent.parent.name
    if name and not (work / "masks" / name / split / "artifact.json").exists():
        raise VplError(f"no masks/{name} for the split `{split}`",
                       f"vpltool crf --what {name} --split {split}, or another --split")
    return find_folder(work, ("masks",), name, split, ("masks",), "vpltool crf")


@torch.no_grad()
def region_embeddings(decoder: Decoder, features: InputFolder, masks: InputFolder,
                      ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean decoder embedding of each class of each pseudo mask.

    Args:
        decoder: gives the embeddings.
        features: with the layers that it reads.
        masks: pseudo masks; 255 and the background are left out.
        ids: photos that both have.

    Returns:
        L2-normed (R, dim), and the class of each (R,). Regions smaller than a patch do not count.
    """
    embeddings, classes = [], []
    with console.progress("read regions", len(ids)) as advance:
        for key in ids:
            tensors = features.read_tensors(key, "grid", "layers", "layer_index", "patches")
            grid = tuple(tensors["grid"].tolist())
            layers = layers_of(tensors["layers"], tensors["layer_index"].tolist(),
                               decoder.shape.layers)
            patches = tensors["patches"].float()
            seen = decoder.embeddings(layers[None].float(), patches[None], grid)[0]
            labels = labels_at(masks.read_labels(key), grid)
            for owner in labels.unique().tolist():
                inside = F.avg_pool2d((labels == owner)[None].float(), 4).flatten()
                if owner not in (0, 255) and float(inside.sum()) >= 1:
                    embeddings.append(F.normalize(inside @ seen, dim=0))
                    classes.append(owner)
            advance()
    if len(set(classes)) < 2:
        raise VplError(f"{masks.path} shows regions of {len(set(classes))} classes",
                       "two are needed: other --masks, or another --split")
    return torch.stack(embeddings), torch.tensor(classes)


def compactness(embeddings: torch.Tensor, classes: torch.Tensor) -> dict[str, float]:
    """How compact and how far apart the classes are, in the space of the embeddings.

    Args:
        embeddings: L2-normed (R, dim).
        classes: of each (R,), two at least.

    Returns:
        `silhouette` (Rousseeuw 1987, of cosine distances, mean over the regions), `within` and
        `between`: mean cosine of pairs of one class, and of two.
    """
    from sklearn.metrics import silhouette_score

    cosines = embeddings @ embeddings.T
    same = classes[:, None] == classes
    others = ~torch.eye(len(classes), dtype=torch.bool)
    return {"silhouette": float(silhouette_score(embeddings.numpy(), classes.numpy(),
                                                 metric="cosine")),
            "within": float(cosines[same & others].mean()), "between": float(cosines[~same].mean())}


def tsne_panel(title: str, embeddings: torch.Tensor, classes: torch.Tensor,
               numbers: dict[str, float]) -> Panel:
    """t-SNE from a PCA start: the same picture each time."""
    from sklearn.manifold import TSNE

    # Evenly thinned: the numbers are of all, the picture of a part.
    kept = torch.linspace(0, len(classes) - 1, min(len(classes), MOST_POINTS)).round().long()
    perplexity = min(30.0, (len(kept) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(
        embeddings[kept].numpy())
    note = ",  ".join(f"{name} {value:.2f}" for name, value in numbers.items())
    return Panel(title, note.replace("within", "cosine within"), [
        Marks("region of a photo", "dot", points.astype(np.float64), classes[kept].tolist())])


def gap_of(workspace: Workspace, options: argparse.Namespace, decoder: Header, masks: InputFolder
           ) -> Panel:
    """The modality gap of the text and of the decoder's prototypes."""
    files = sorted((options.work / "prototypes").glob("*.safetensors"))
    own = [path.stem for path in files if identity_of_file(path) == decoder.inputs["prototypes"]]
    choices = (options.prototypes.split(",") if options.prototypes
               else ["text", *(name for name in own[:1] if name != "text")])
    features = open_features(workspace, options.features, options.split)
    cams = options.cams
    if not cams and (options.work / "cams" / masks.name / options.split / "artifact.json").exists():
        cams = masks.name
    regions = open_regions(workspace, features, cams, options.split, options.phi, 0)
    sets = read_sets(workspace, choices, features.header.model, str(features.path))
    found, owner, gaps = measure(regions, sets)
    panel = panel_of(found, owner, sets, gaps)
    return Panel(f"(c) {panel.title}", panel.note, panel.marks, panel.links, panel.axes)


def figure4(options: argparse.Namespace) -> None:
    """Region embeddings without and with the regional contrast, and the modality gap."""
    try:
        import sklearn  # noqa: F401 - asked for before the work begins
    except ImportError:
        raise VplError("figure4 needs scikit-learn for t-SNE", "pip install '.[figures]'") from None
    workspace = open_workspace(options.work)
    names = pair_of(options.work, options.decoders)
    decoders = [read_decoder(options.work, name) for name in names]
    masks = find_masks(options.work, options.masks, options.split, decoders[0][0])
    workspace.check_classes(masks.header, masks.path)
    features = open_features(workspace, options.features, options.split)
    photos = workspace.photos(options.split)
    ids = masks.available(features.available(photo.id for photo in photos))
    panels: list[Panel] = []
    report: dict[str, Any] = {"split": options.split, "masks": masks.name, "photos": len(ids),
                              "decoders": {}}
    for letter, name, (header, decoder, path) in zip("ab", names, decoders, strict=True):
        workspace.check_classes(header, path)
        _artifacts.check_same_model(features.header.model, header.model,
                                    f"{features.path} and {path}")
        held = features.header.options
        if not {"layers", "patches"} <= set(held["keep"]) or not (
                set(decoder.shape.layers) <= set(held["layers"])):
            wanted = ",".join(map(str, sorted({
                layer for _, other, _ in decoders for layer in other.shape.layers})))
            # Elsewhere: what was made of the features that are there stays what it is.
            place = options.work / "layers" / options.split
            raise VplError(f"{features.path} lacks layers or patches that {name} reads",
                           f"vpltool -C {options.work} extract --split {options.split} --keep "
                           f"tokens,patches,attention,layers --layers {wanted} --out {place}, "
                           f"and --features {place}")
        embeddings, classes = region_embeddings(decoder, features, masks, ids)
        numbers = compactness(embeddings, classes)
        weight = header.options["lambda_rsc"]
        report["decoders"][name] = {"lambda_rsc": weight, "regions": len(classes),
                                    **{key: round(value, 6) for key, value in numbers.items()}}
        contrast = f"with RSC, weight {weight:g}" if weight else "without RSC"
        panels.append(tsne_panel(f"({letter}) {contrast}", embeddings, classes, numbers))
    panels.append(gap_of(workspace, options, decoders[1][0], masks))
    out = options.out or options.work / "figures/figure4.png"
    shown = sorted({owner for panel in panels for marks in panel.marks for owner in marks.classes})
    save(draw_panels(panels, {owner: workspace.class_name(owner) for owner in shown}), out)
    write_json(out.with_suffix(".json"), report)
    print(out.with_suffix(".json"))
    width = max(len(name) for name in names)
    print(f"{'':{width}}  lambda  regions  silhouette  within  between")
    for name, row in report["decoders"].items():
        print(f"{name:{width}}  {row['lambda_rsc']:6g}  {row['regions']:7}  "
              f"{row['silhouette']:10.3f}  {row['within']:6.3f}  {row['between']:7.3f}")


def pair_of_names(text: str) -> str:
    """Type of `--decoders`: two names."""
    if len(text.split(",")) != 2:
        raise argparse.ArgumentTypeError("two names with a comma between them")
    return text


def main() -> None:
    """Read the command line, draw, and explain what is wrong in a line and a hint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    fourth.add_argument("--decoders", type=pair_of_names,
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
    options = parser.parse_args()
    try:
        options.draw(options)
    except VplError as error:
        console.error(error.message, error.hint)
        sys.exit(1)


if __name__ == "__main__":
    main()
