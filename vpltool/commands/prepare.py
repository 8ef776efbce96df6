"""`vpltool prepare voc|folder`: from photos and tags to a workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vpltool import console
from vpltool.datasets import layouts
from vpltool.datasets.prompts import read_lines
from vpltool.datasets.words import VOC, VOCABULARIES, Vocabulary
from vpltool.errors import VplError, check_choice, near_name
from vpltool.formats import Photo, Workspace, write_workspace
from vpltool.formats.workspace import open_workspace, read_images, relative_to
from vpltool.options import Overwrite, Quiet
from vpltool.stage import Stage

STAGE = Stage(order=10, panel="1. Begin", reads=(), writes=("workspace", "images"))

NORMALISE = ("model", "imagenet")

app = typer.Typer(
    help="Make a workspace from photos and image-level tags. Next: vpltool text-prototypes",
    short_help="Make a workspace from photos and tags.", no_args_is_help=True)

Model = Annotated[str, typer.Option("--model", help="open_clip's name of the CLIP.")]
Pretrained = Annotated[str, typer.Option(
    "--pretrained", metavar="TAG-OR-PATH",
    help="Its weights: a tag of open_clip, a file, or a folder with open_clip_config.json.")]
Classes = Annotated[Path | None, typer.Option(
    "--classes", metavar="FILE", help="Class names in index order, one a line.")]
Background = Annotated[Path | None, typer.Option(
    "--background", metavar="FILE", help="Words for what is no class, one a line.")]
Normalise = Annotated[str, typer.Option(
    "--normalise", help="How photos are normalised: as the model was trained, or imagenet "
                        "(WeCLIP).")]
Halve = Annotated[str, typer.Option(
    "--halve", metavar="SPLIT",
    help="Add the splits SPLIT-a and SPLIT-b, every second photo each: choose settings on one, "
         "score on the other.")]


@app.command("voc")
def voc(
    ctx: typer.Context,
    root: Annotated[Path, typer.Argument(help="The folder that holds JPEGImages.")],
    model: Model = "ViT-B-16-quickgelu",
    pretrained: Pretrained = "openai",
    classes: Classes = None,
    background: Background = None,
    halve: Halve = "",
    normalise: Normalise = "model",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Take photos, splits and tags from a VOC2012 folder.

    Tags come from labels.csv beside JPEGImages if there is one, else from the XML, never from
    masks.

    Example: vpltool prepare voc VOCdevkit/VOC2012

    Next: vpltool text-prototypes
    """
    console.set_quiet(quiet)
    check_choice("normalise", normalise, NORMALISE)
    words = _words(VOC, classes, background)
    photos = layouts.read_voc(root, words.classes)
    name = "voc" if classes is None else root.name
    _finish(ctx.obj, name, root, photos, words, model, pretrained, normalise, halve, overwrite)


@app.command("folder")
def folder(
    ctx: typer.Context,
    images: Annotated[Path, typer.Argument(help="Folder of photos.")],
    labels: Annotated[Path, typer.Option(
        "--labels", metavar="FILE.csv", help="Columns id,labels and, if wanted, split.")],
    masks: Annotated[Path | None, typer.Option(
        "--masks", metavar="DIR", help="True masks ID.png, for eval alone.")] = None,
    vocabulary: Annotated[str, typer.Option(
        metavar="voc|coco", help="Classes, class words and background words of VOC or COCO.",
    )] = "",
    model: Model = "ViT-B-16-quickgelu",
    pretrained: Pretrained = "openai",
    classes: Classes = None,
    background: Background = None,
    halve: Halve = "",
    normalise: Normalise = "model",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Take photos from a folder, tags from a CSV (labels separated by ; or by spaces).

    Classes are the sorted union of the labels unless --classes names them.

    Example: vpltool prepare folder photos --labels tags.csv

    Next: vpltool text-prototypes
    """
    console.set_quiet(quiet)
    check_choice("normalise", normalise, NORMALISE)
    photos, found = layouts.read_folder(images, labels, masks)
    if masks and not any(photo.mask for photo in photos):
        console.warn(f"{masks} holds no mask of any photo; masks are called ID.png")
    if vocabulary and vocabulary not in VOCABULARIES:
        raise VplError(f"--vocabulary {vocabulary}: no such vocabulary",
                       near_name(vocabulary, VOCABULARIES))
    known = VOCABULARIES.get(vocabulary, Vocabulary(found, VOC.background))
    words = _words(known, classes, background)
    layouts.check_labels(photos, words.classes)
    if background is None:
        # A class must not compete with itself as a background word.
        words = replace(words, background=tuple(
            word for word in words.background if word not in words.classes))
    name = vocabulary or images.resolve().name
    if not vocabulary and name in VOCABULARIES:
        name = f"{name}-photos"
    _finish(ctx.obj, name, images, photos, words, model, pretrained, normalise, halve,
            overwrite)


def _words(words: Vocabulary, classes: Path | None, background: Path | None) -> Vocabulary:
    if classes is not None:
        words = replace(words, classes=layouts.read_classes(classes))
    if background is not None:
        lines = read_lines(background, "--background takes a text file with one word a line")
        words = replace(words, background=tuple(dict.fromkeys(lines)))
    return words


def _finish(
    work: Path, name: str, root: Path, photos: Sequence[Photo], words: Vocabulary, model: str,
    pretrained: str, normalise: str, halve: str, overwrite: bool,
) -> None:
    if halve:
        photos = _halved(photos, halve)
    if Path(pretrained).exists():
        if Path(pretrained).is_dir():
            # Such a folder says itself which model it holds; its name is the model's.
            model = Path(pretrained).resolve().name
        pretrained = relative_to(Path(pretrained), work)
    workspace = Workspace(work, name, relative_to(root, work), words.classes, words.background,
                          model, pretrained, normalise=normalise)
    if (work / "workspace.json").exists() and not overwrite:
        same = open_workspace(work) == workspace
        there = read_images(work / "images.jsonl")
        # True masks may come and go: nothing but scores depends on them.
        if not same or _unmasked(there) != _unmasked(photos):
            raise VplError(f"{work / 'workspace.json'} is there, made with other settings",
                           "add --overwrite to replace it, or choose another folder: -C DIR")
        if there != list(photos):
            write_workspace(workspace, photos)
    else:
        write_workspace(workspace, photos)
    splits = Counter(split for photo in photos for split in photo.splits)
    console.note(
        f"{len(photos)} photos, {len(words.classes)} classes, {len(words.background)} background "
        "words; " + ", ".join(f"{split}: {count}" for split, count in sorted(splits.items())))
    used = {label for photo in photos for label in photo.labels}
    for name in words.classes:
        if name not in used:
            console.warn(f"no photo has the tag `{name}`")
    untagged = [photo.id for photo in photos if not photo.labels]
    if untagged:
        console.warn(f"{len(untagged)} photos have no tag and teach nothing but background: "
                     f"{', '.join(untagged[:5])}{' …' if len(untagged) > 5 else ''}")
    print(work / "workspace.json")


def _unmasked(photos: Sequence[Photo]) -> list[Photo]:
    return [replace(photo, mask=None) for photo in photos]


def _halved(photos: Sequence[Photo], split: str) -> list[Photo]:
    if not any(split in photo.splits for photo in photos):
        known = sorted({name for photo in photos for name in photo.splits})
        raise VplError(f"--halve {split}: no such split", f"one of: {', '.join(known)}")
    count, halved = 0, []
    for photo in photos:
        if split in photo.splits:
            half = f"{split}-{'ab'[count % 2]}"
            photo = replace(photo, splits=(*photo.splits, half))
            count += 1
        halved.append(photo)
    return halved
