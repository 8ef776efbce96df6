"""`train-student`: a small network that learns the probabilities of a segmenter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.clip import encoders
from vpltool.core import joint, segmenter
from vpltool.datasets.layouts import named_photos
from vpltool.engine import checkpoints, features, headers, segmenters
from vpltool.engine.masks import Masks, check_masks, find_masks, identities_of, with_masks
from vpltool.engine.photos import check_current, with_photo_files
from vpltool.errors import VplError, part_of
from vpltool.formats import Header, InputFolder, Photo, Workspace, kinds, shards
from vpltool.formats.workspace import relative_to
from vpltool.lazy import torch
from vpltool.names import without_folders
from vpltool.parallel.device import find_device
from vpltool.settings import Stage, setting
from vpltool.stages._joint import PixelData, TrainingPhoto, facts_of, train_both, warn_of_little

DEFAULT_STUDENT = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
"""A plain ViT of 5.7 million parameters, Apache-2.0."""

_SCALES = (0.7, 1.6)
"""Factors on a photo's size, chosen by agreement with the teacher on held-out photos. With
WeCLIP's, 0.5 to 2, fewer crops resemble the photos in use."""

_LAYER_DECAY = 0.65
"""Chosen in the same way; with 1, the knowledge in published weights was lost."""


@dataclass(frozen=True, kw_only=True)
class StudentSettings(options.Replaces):
    """Settings of `train-student`."""

    teacher: str = setting("", "Segmenter to learn from; default: the only one, or the first of "
                               "vision-refined, vision, text-refined and text.",
                           metavar="NAME-OR-PATH", record="never")
    also: Path | None = setting(
        None, "Also learn from this folder of photos without tags, whose probabilities `predict "
              "DIR --probabilities` has stored.", metavar="DIR", record="never")
    encoder: str = setting(DEFAULT_STUDENT, "Small network; timm:MODEL or timm:MODEL,FILE, a ViT "
                                            "or a convolutional one.", metavar="NAME-OR-FILE")
    begin: str = setting("pretrained", "Begin with the network's published weights, or with random "
                                       "ones.", choices=("pretrained", "random"))
    masks: str = setting("", "Masks of `crf` that sharpen the teacher where they agree with it; "
                             "none: the teacher alone. Default: those that taught the teacher.",
                         metavar="NAME-OR-PATH", record="never")
    lambda_masks: float = setting(0.5, "Weight of the masks where they agree with the teacher.",
                                  low=0, source="vpltool")
    layers: str = setting("spread", "Levels of the network to read; 0 is the first; spread: four, "
                                    "evenly spaced.", metavar="LIST")
    width: int = setting(128, "Width of the head's hidden layers.", low=1)
    split: str = options.split("train")
    limit: int = options.limit(record="changed")
    iters: int = setting(3000, "Training steps.", low=1)
    batch_size: int = setting(8, "Crops per step.", low=1)
    crop: int = setting(16, "Side of a crop, in patches.", low=2)
    lr: float = setting(5e-4, "Learning rate of AdamW; the head's is ten times as high.", low=0)
    layer_decay: float | None = setting(
        None, "Each block of the network learns at this share of the next one's rate. Default: "
              "0.65; 1 with --begin random.", low=0, high=1,
        source="BEiT, Bao et al., ICLR 2022: 0.65 to 0.9")
    power: float = setting(0.9, "The learning rate decays as (1 - t)^POWER.", low=0)
    average: float = setting(0.999, "Decay of the average of the weights, which is the result.",
                             low=0, high=1, source="Mean teacher, Tarvainen and Valpola 2017")
    max_side: int = setting(352, "Scale longer photos down to this, in training and in use; "
                                 "smaller is faster. 0: never.", low=0, metavar="PIXELS")
    name: str = setting("student", "Name of the student.", record="never", inside=True)
    checkpoint_every: int = options.checkpoint_every(200)
    seed: int = options.seed()
    precision: str = options.precision()
    device: str = options.device()
    workers: int = options.workers()


STAGE = Stage(order=75, panel="3. Masks and segmenter", reads=("decoder", "probabilities", "masks"),
              writes=("decoder",), settings=StudentSettings, together=True)


def run(workspace: Workspace, settings: StudentSettings) -> Path:
    """Train a small, fast segmenter on the predictions of a large one.

    It learns the class probabilities that `predict` has stored, averaged
    over the scales given there; a class that a photo is not tagged with
    gets probability 0. The file contains the small network, so predict,
    eval and export need no other encoder.

    Example: vpltool train-student --teacher segmenter --encoder timm:mobilenetv3_small_100

    Next: vpltool predict --decoder student --split val

    Raises:
        VplError: an input is missing or is of other classes, or a setting is refused.
    """
    shards.check_even(settings.batch_size)
    found = _find_inputs(workspace, settings)
    target = settings.out or kinds.result_path(workspace.path, "decoder", settings.name)
    if target.resolve() == found.teacher.path.resolve():
        raise VplError(f"{target} is the teacher", "`name='NAME'` gives the student another name")
    source = encoders.find_encoder(settings.encoder, (Path(), workspace.path))
    encoder = (encoders.random_encoder(source, settings.seed) if settings.begin == "random"
               else encoders.load_encoder(source, find_device("cpu")))
    _warn_of_grid(found.soft, encoder.vision.patch, settings.max_side)
    layers = features.parse_layers(settings.layers, encoder.vision.depth)
    header = _make_header(workspace, settings, found, encoder.identity, layers)
    if source.path:
        header.call["encoder"] = source.setting(relative_to(source.path, workspace.path))
    if headers.check_file(target, header, settings):
        return target
    start = checkpoints.read_checkpoint(target, header, settings)
    if found.masks:
        check_masks(found.masks, workspace, [taught.photo for taught in found.photos
                                             if taught.masked])
    warn_of_little([workspace.indices_of(taught.photo) for taught in found.photos
                    if taught.tagged], workspace.classes)
    torch.manual_seed(settings.seed)
    head = segmenter.LightHead(tuple(layers), encoder.vision.width, 1 + len(workspace.classes),
                                settings.width)
    train_both(
        PixelData(workspace, found.photos, found.masks, encoder, settings.max_side, _SCALES),
        head, joint.JointSettings(
            average=settings.average, head_lr=10.0, layer_decay=header.options["layer_decay"],
            lambda_masks=settings.lambda_masks if found.masks else 0.0),
        settings, header, target, start, ("teacher", "masks"))
    return target


@dataclass(frozen=True)
class _StudentInputs:
    """A teacher's probabilities, also of another folder's photos, and masks that sharpen them."""

    teacher: segmenters.SegmenterFile
    soft: InputFolder
    also: InputFolder | None
    masks: Masks | None
    photos: Sequence[TrainingPhoto]


def _find_inputs(workspace: Workspace, settings: StudentSettings) -> _StudentInputs:
    teacher = segmenters.find_segmenter(workspace.path, settings.teacher, "teacher")
    listed = workspace.photos(settings.split, settings.limit)
    soft = teacher.open_probabilities(workspace, settings.split)
    ids = soft.available([photo.id for photo in listed])
    check_current(workspace, ids, soft)
    masks = _find_masks(workspace, settings, teacher, listed)
    there, masked = set(ids), set(masks.ids if masks else ())
    photos = [TrainingPhoto(photo, soft, photo.id in masked, bool(photo.tags)) for photo in listed
              if photo.id in there]
    also = None
    if settings.also:
        added, also = _also(workspace, teacher, settings.also)
        photos += added
    return _StudentInputs(teacher, soft, also, masks, photos)


def _also(workspace: Workspace, teacher: segmenters.SegmenterFile, folder: Path
          ) -> tuple[list[TrainingPhoto], InputFolder]:
    """Find the photos of a folder without tags, and the teacher's probabilities of them."""
    name, paths = folder.resolve().name if folder.is_dir() else "files", named_photos([folder])
    again = f"predict(images=[{str(folder)!r}], decoder={teacher.path.stem!r}, probabilities=True"
    soft = teacher.open_probabilities(workspace, name, again)
    root = workspace.path / workspace.root
    ids = soft.available(list(paths))
    if len(ids) < len(paths):
        console.warn(part_of(len(paths) - len(ids), len(paths), f"photos of {folder}",
                             "has no probabilities; it is skipped",
                             "have no probabilities; they are skipped"))
    return [TrainingPhoto(Photo(key, relative_to(paths[key], root), (), (name,)), soft,
                          masked=False, tagged=False) for key in ids], soft


def _find_masks(workspace: Workspace, settings: StudentSettings, teacher: segmenters.SegmenterFile,
                photos: Sequence[Photo]) -> Masks | None:
    """Find the masks that sharpen the teacher's probabilities; default: those that taught it."""
    choice = settings.masks
    if not choice:
        taught = teacher.header.sources.get("masks", "")
        choice = taught if taught and (workspace.path / taught).is_dir() else "none"
    if choice == "none" or not settings.lambda_masks:
        return None
    return find_masks(workspace, choice, settings.split, photos)


def _warn_of_grid(soft: InputFolder, patch: int, max_side: int) -> None:
    """Warn if a student's grid is far coarser than its teacher's."""
    key = next((path.stem for path in soft.path.glob("*.safetensors")), "")
    if not key or not max_side:
        return
    _, shape = soft.describe(key).shapes.get("probabilities", ("", (0, 0, 0)))
    taught, own = max(shape[1:]) // 4, max_side // patch
    if 2 * own < taught:
        console.warn(f"the student sees {own} patches along a photo's longer side, its teacher "
                     f"{taught}: small objects will be lost; `max_side={taught * patch // 2}`, or "
                     "a network with smaller patches")


def _make_header(workspace: Workspace, settings: StudentSettings, found: _StudentInputs,
                 model: Mapping[str, str], layers: list[int]) -> Header:
    inputs: dict[str, InputFolder | Path | str] = {
        "teacher": found.teacher.path, "probabilities": found.soft,
        "classes": workspace.classes_identity, "tags": workspace.tags_identity(settings.split)}
    if found.also:
        inputs["also-probabilities"] = found.also
    if found.masks:
        inputs |= identities_of(found.masks, found.masks.ids)
    decay = settings.layer_decay
    if decay is None:
        # Random weights contain nothing to preserve.
        decay = 1.0 if settings.begin == "random" else _LAYER_DECAY
    header = headers.make_header(
        workspace, "decoder", "train-student", settings, inputs=inputs, model=model,
        options={"layers": layers, "layer_decay": decay,
                 "encoder": without_folders(settings.encoder)})
    if found.masks:
        header = with_masks(header, found.masks, workspace)
    if settings.also:
        header.call.pop("also")
        header.sources["also"] = relative_to(settings.also, workspace.path)
    return with_photo_files(workspace, replace(
        header, facts=facts_of("light", workspace, settings.max_side)))
