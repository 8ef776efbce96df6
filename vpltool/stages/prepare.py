"""`vpltool prepare voc|coco|folder`: from photos and tags to a workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vpltool import console
from vpltool.datasets import layouts
from vpltool.datasets.classes import read_classes
from vpltool.datasets.coco import read_coco
from vpltool.datasets.prompts import read_lines
from vpltool.datasets.voc import read_voc
from vpltool.datasets.words import COCO, VOC, VOCABULARIES, Vocabulary
from vpltool.errors import VplError, check_choice
from vpltool.formats import Photo, Workspace, write_workspace
from vpltool.formats.workspace import open_workspace, read_images, relative_to
from vpltool.options import Overwrite, Quiet, Workers
from vpltool.stage import Stage

STAGE = Stage(order=10, panel="1. Begin", reads=(),
              writes=("workspace", "images", "masks"))

NORMALISE = ("model", "imagenet")

app = typer.Typer(
    help="Make a workspace from photos and image-level tags. Next: vpltool text-prototypes",
    short_help="Make a workspace from photos and tags.", no_args_is_help=True)

DEFAULT_MODEL = ("ViT-B-16-quickgelu", "openai")
"""`--model` and `--pretrained`; known to fit, so open_clip need not be asked (it takes seconds)."""

Model = Annotated[str, typer.Option("--model", help="open_clip's name of the CLIP.")]
Pretrained = Annotated[str, typer.Option(
    "--pretrained", metavar="TAG-OR-PATH",
    help="Its weights: a tag of open_clip, hf-hub:ORG/NAME, a file, or a folder with "
         "open_clip_config.json.")]
Classes = Annotated[Path | None, typer.Option(
    "--classes", metavar="FILE",
    help="Class names in index order, one a line; or lines VALUE NAME, where VALUE is the pixel "
         "value of the class in the true masks.")]
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
    lists: Annotated[list[Path] | None, typer.Option(
        "--list", metavar="FILE", help="A further list of photos, such as voc12/train_aug.txt: its "
                                       "name is the split's. May be given again.")] = None,
    model: Model = DEFAULT_MODEL[0],
    pretrained: Pretrained = DEFAULT_MODEL[1],
    classes: Classes = None,
    background: Background = None,
    normalise: Normalise = "model",
    halve: Halve = "",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Take photos, splits and tags from a VOC2012 folder.

    Splits are the lists in ImageSets/Segmentation, train_aug or trainaug among them. Tags come
    from labels.csv beside JPEGImages if there is one, else from the XML, never from masks.

    Example: vpltool prepare voc VOCdevkit/VOC2012

    Next: vpltool text-prototypes
    """
    console.set_quiet(quiet)
    words, values = _words(VOC, classes, background)
    photos, remarks = read_voc(root, words.classes, lists or [])
    name = "voc" if classes is None else root.name
    workspace = _plan(ctx.obj, name, root, words, model, pretrained, values,
                      normalise)
    photos = _checked(workspace, root, photos, remarks, halve, overwrite)
    _finish(workspace, photos)


@app.command("coco")
def coco(
    ctx: typer.Context,
    root: Annotated[Path, typer.Argument(
        help="The folder that holds train2014, val2014 and annotations.")],
    truth: Annotated[bool, typer.Option(
        "--truth/--no-truth", help="Make the true masks, for eval and show alone, from the "
                                   "instances. Needs pycocotools.")] = True,
    overlap: Annotated[str, typer.Option(
        metavar="smallest|ignore", help="True masks, where instances overlap: the smallest wins, "
                                        "or what two classes claim is not scored.")] = "smallest",
    crowd: Annotated[str, typer.Option(
        metavar="class|ignore", help="True masks, where a crowd is: its class, or not scored.",
    )] = "class",
    empty: Annotated[bool, typer.Option(
        "--empty/--no-empty", help="Keep photos without any instance.")] = False,
    model: Model = DEFAULT_MODEL[0],
    pretrained: Pretrained = DEFAULT_MODEL[1],
    classes: Classes = None,
    background: Background = None,
    normalise: Normalise = "model",
    halve: Halve = "",
    workers: Workers = -1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Take photos, splits and tags from a COCO 2014 folder.

    Tags are the categories of a photo's instances, or those of labels.csv in the folder.

    True masks go to ground-truth/ in the workspace; a stopped run goes on.

    Example: vpltool prepare coco COCO2014

    Next: vpltool text-prototypes
    """
    console.set_quiet(quiet)
    _check_truth(truth, overlap, crowd)
    words, _ = _words(COCO, classes, background)
    if (root / "annotations").is_dir():
        console.note(f"reading {root / 'annotations'}")
    photos, remarks, outlines = read_coco(root, words.classes, empty=empty)
    if truth and not outlines:
        raise VplError(f"{root / 'annotations'} has no instances to make true masks from",
                       "add --no-truth")
    workspace = _plan(ctx.obj, "coco" if classes is None else root.name, root, words, model,
                      pretrained, {}, normalise)
    photos = _checked(workspace, root, photos, remarks, halve, overwrite)
    made = []
    if truth:
        from vpltool.parallel.device import worker_count
        from vpltool.stages._instances import make_masks

        count = worker_count(workers) if workers >= 0 else worker_count(-1) + 1
        for split in outlines:
            output, masked = make_masks(
                workspace, [photo for photo in photos if split in photo.splits], split,
                outlines[split], overlap=overlap, crowd=crowd, workers=count, overwrite=overwrite)
            known = {photo.id: photo for photo in masked}
            photos = [known.get(photo.id, photo) for photo in photos]
            made.append(output)
    _finish(workspace, photos)
    failed = []
    for output in made:
        try:
            output.finish()
        except VplError as error:
            failed.append(error)
    if failed:
        raise failed[0]


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
    model: Model = DEFAULT_MODEL[0],
    pretrained: Pretrained = DEFAULT_MODEL[1],
    classes: Classes = None,
    background: Background = None,
    normalise: Normalise = "model",
    halve: Halve = "",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Take photos from a folder, tags from a CSV (labels separated by ; or by spaces).

    Classes are the sorted union of the labels unless --classes names them.

    Example: vpltool prepare folder photos --labels tags.csv

    Next: vpltool text-prototypes
    """
    console.set_quiet(quiet)
    photos, found = layouts.read_folder(images, labels, masks)
    if masks and not any(photo.mask for photo in photos):
        console.warn(f"{masks} holds no mask of any photo; masks are called as the photo's id: "
                     f"{photos[0].id}.png; found: {layouts.found_in(masks)}")
    if vocabulary:
        check_choice("vocabulary", vocabulary, VOCABULARIES)
    known = VOCABULARIES.get(vocabulary, Vocabulary(found, VOC.background))
    words, values = _words(known, classes, background)
    layouts.check_labels(photos, words.classes)
    if background is None:
        # A class must not compete with itself as a background word.
        words = replace(words, background=tuple(
            word for word in words.background if word not in words.classes))
    name = vocabulary or images.resolve().name
    if not vocabulary and name in VOCABULARIES:
        name = f"{name}-photos"
    workspace = _plan(ctx.obj, name, images, words, model, pretrained, values,
                      normalise)
    photos = _checked(workspace, images, photos, [], halve, overwrite)
    _finish(workspace, photos)


def _words(
    words: Vocabulary, classes: Path | None, background: Path | None
) -> tuple[Vocabulary, dict[int, int]]:
    """The words to use, and what the values of true masks stand for."""
    values: dict[int, int] = {}
    if classes is not None:
        file = read_classes(classes)
        words, values = replace(words, classes=file.names), file.values
    if background is not None:
        lines = read_lines(background, "--background takes a text file with one word a line")
        words = replace(words, background=tuple(dict.fromkeys(lines)))
    return words, values


def _check_truth(truth: bool, overlap: str, crowd: str) -> None:
    from vpltool.core.instances import CROWDS, OVERLAPS, check_pycocotools

    check_choice("overlap", overlap, OVERLAPS)
    check_choice("crowd", crowd, CROWDS)
    if truth:
        try:
            check_pycocotools()
        except VplError as error:
            raise VplError(f"{error.message}; it makes the true masks",
                           f"{error.hint}, or add --no-truth to do without them") from error


def _plan(
    work: Path, name: str, root: Path, words: Vocabulary, model: str, pretrained: str,
    values: dict[int, int], normalise: str,
) -> Workspace:
    check_choice("normalise", normalise, NORMALISE)
    model, pretrained = _check_model(model, pretrained, work)
    return Workspace(work, name, relative_to(root, work), words.classes, words.background, model,
                     pretrained, mask_values=values, normalise=normalise)


def _checked(
    workspace: Workspace, root: Path, photos: Sequence[Photo], remarks: Sequence[str], halve: str,
    overwrite: bool,
) -> list[Photo]:
    """The photos, halved if wanted, after all that can be said about them beforehand.

    Raises:
        VplError: another workspace is there.
    """
    for remark in remarks:
        console.warn(remark)
    photos = _halved(photos, halve) if halve else list(photos)
    path = workspace.path / "workspace.json"
    if path.exists() and not overwrite:
        # True masks may come and go: nothing but scores depends on them.
        same = replace(open_workspace(workspace.path), mask_values=workspace.mask_values)
        there = read_images(workspace.path / "images.jsonl")
        if same != workspace or _unmasked(there) != _unmasked(photos):
            raise VplError(f"{path} is there, made with other settings",
                           "add --overwrite to replace it, or choose another folder: -C DIR")
    torn = layouts.torn_photos([root / photo.image for photo in photos])
    if torn:
        console.warn(f"{len(torn)} of {len(photos)} photos are empty or end before their end, such "
                     f"as {torn[0]}: extract or download them again")
    return photos


def _finish(workspace: Workspace, photos: Sequence[Photo]) -> None:
    path = workspace.path / "workspace.json"
    if not path.exists() or open_workspace(workspace.path) != workspace or read_images(
            workspace.path / "images.jsonl") != list(photos):
        write_workspace(workspace, photos)
    _describe(workspace, photos)
    print(path)


def _describe(workspace: Workspace, photos: Sequence[Photo]) -> None:
    splits = Counter(split for photo in photos for split in photo.splits)
    masked = Counter(split for photo in photos if photo.mask for split in photo.splits)
    console.note(
        f"{len(photos)} photos, {len(workspace.classes)} classes, {len(workspace.background)} "
        "background words; " + ", ".join(f"{split}: {count}"
                                         for split, count in sorted(splits.items())))
    for split, count in sorted(splits.items()):
        if 0 < masked[split] < count or (masked and not masked[split] and split != "test"):
            console.warn(f"{count - masked[split]} of {count} photos of `{split}` have no true "
                         "mask; eval leaves them out")
    if workspace.name == "voc" and not masked:
        console.warn("no photo has a true mask (SegmentationClass): eval will have nothing to "
                     "score with")
    unused = set(workspace.classes).difference(*(photo.labels for photo in photos))
    for name in sorted(unused) if len(unused) <= 5 else ():
        console.warn(f"no photo has the tag `{name}`")
    if len(unused) > 5:
        console.warn(f"no photo has the tag of {len(unused)} classes: "
                     f"{', '.join(sorted(unused)[:5])} …")
    untagged = [photo.id for photo in photos if not photo.labels and photo.splits != ("test",)]
    if untagged:
        console.warn(f"{len(untagged)} photos have no tag and teach nothing but background: "
                     f"{', '.join(untagged[:5])}{' …' if len(untagged) > 5 else ''}")


def _check_model(model: str, pretrained: str, work: Path) -> tuple[str, str]:
    """Check the model before anything is written; spell it as workspace.json has it.

    Raises:
        VplError: there is no such model, tag, file or folder, or it cannot be used.
    """
    from vpltool.clip.models import find_source

    source = find_source(model, pretrained)
    if source.form in ("tag", "file") and (model, pretrained) != DEFAULT_MODEL:
        from vpltool.clip.catalogue import check_source

        for guess in check_source(source):
            console.warn(guess)
    if source.path is None:
        return source.model, source.pretrained
    # A folder says itself which model it holds; its name is the model's.
    name = source.path.resolve().name if source.form == "folder" else source.model
    return name, relative_to(source.path, work)


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
