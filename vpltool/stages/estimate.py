"""`estimate`: about how long a job will take on this machine."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console, options
from vpltool.clip import encoders
from vpltool.core import joint, segmenter, tagging, tower, training, vit
from vpltool.core.grids import LABELS_PER_PATCH
from vpltool.core.photos import describe_failure, fit_size, photo_size
from vpltool.engine import features, models
from vpltool.errors import VplError, counted, first_few
from vpltool.formats import JsonObject, Photo, Workspace, describe, kinds
from vpltool.lazy import F, np, torch
from vpltool.methods import KINDS, SegmenterMethod, find_method, inputs, load_method
from vpltool.parallel.device import find_device, find_precision, worker_count
from vpltool.settings import Settings, Stage, described, setting
from vpltool.stages import _training_inputs, tag
from vpltool.stages.train_student import DEFAULT_STUDENT, StudentSettings

_LOOKED_AT = 40
"""Photos whose sizes are read: enough for a mean."""

_NOTHING: JsonObject = {"photos": 0, "seconds": {}, "total": 0.0, "bytes": 0}
"""The report where no photo is to be encoded."""


@dataclass(frozen=True, kw_only=True)
class EstimateSettings(Settings):
    """Settings of `estimate`."""

    split: str = options.split("train")
    max_side: int = setting(1024, "Longest side in `extract`, in pixels.", low=0, metavar="PIXELS")
    layers: int = setting(4, "Number of layers that `extract` stores.", low=0)
    iters: int = setting(300, "Steps of `train-decoder`.", low=0)
    segmenter: str = setting(KINDS["segmenters"].default, "Method of `train-decoder`.",
                             metavar="NAME")
    batch_size: int = setting(6, "Crops per step of `train-decoder`.", low=1)
    crop: int = setting(16, "Side of its crops, in patches.", low=2)
    width: int = setting(256, "Width of its decoder, for a method that has one.", low=8)
    finetune: int = setting(0, "Also count this many steps of `train-decoder --method finetune`.",
                            low=0)
    student: str = setting("", "Also count `train-student`, of this network; small: its default.",
                           metavar="NAME-OR-FILE")
    student_iters: int = setting(StudentSettings.iters, "Steps of `train-student`.", low=1)
    new: bool = setting(False, "Count only what photos without features or masks still need; if "
                               "all have features, only trainings without a result. Unreadable "
                               "photos are named, not counted.", off="-")
    tag: bool = setting(False, "Also count `tag`, of photos without a tag.", off="-")
    device: str = options.device()
    precision: str = options.precision()


STAGE = Stage(order=12, panel="1. Begin", reads=("workspace", "images"), writes=(),
              settings=EstimateSettings)


def run(workspace: Workspace, settings: EstimateSettings) -> JsonObject:
    """Estimate the time for extraction, masks and training, and the disk space.

    Each is measured on this machine with one photo, or one crop, and extrapolated, which takes
    seconds.

    Example: vpltool estimate --max-side 512 --iters 300

    Next: vpltool extract

    Returns:
        `photos`, `seconds` by stage and `total`, and `bytes` of features.

    Raises:
        VplError: there is no such segmenter, the encoder cannot be had, or no photo can be read;
            where only new ones count, nothing is left to encode then, which is no error.
    """
    find_method("segmenters", settings.segmenter)
    photos = everything = workspace.photos(settings.split)
    unmasked = len(photos)
    if settings.new:
        folder = kinds.result_path(workspace.path, "features", settings.split)
        photos = [photo for photo in photos if not (folder / f"{photo.id}.safetensors").exists()]
        if not photos:
            return _estimate_missing(workspace, settings)
        below = f"*/{glob.escape(settings.split)}"
        masked = {path.relative_to(split).with_suffix("").as_posix()
                  for split in kinds.folder_of(workspace.path, "masks").glob(below)
                  for path in split.rglob("*.png")}
        unmasked = sum(photo.id not in masked for photo in everything)
    sizes, failed = _sizes(workspace, photos)
    if not sizes:
        named = first_few(failed, "; ")
        if not settings.new:
            raise VplError(f"no photo can be read; {named}", "`doctor()` checks them")
        # The photos that have features are as good as before: a recipe goes on with them.
        console.note("nothing remains to be encoded: "
                     + counted(len(failed), "new photo", "new photos")
                     + f" cannot be read: {named}")
        return dict(_NOTHING)

    device = find_device(settings.device)
    dtype = find_precision(settings.precision, device, console.warn)
    encoder = models.load_main(workspace, device)
    patch = encoder.vision.patch
    grids = [tuple(side // patch for side in fit_size(size, patch, max_side=settings.max_side))
             for size in sizes]
    mean = round(sum(height * width for height, width in grids) / len(grids))
    side = max(2, round(mean ** 0.5))
    pixels = round(sum(height * width for height, width in sizes) / len(sizes))
    count, trained = len(photos) - len(failed), len(everything) - len(failed)
    # A GPU does the CRF of all photos in one process.
    processes = worker_count(-1) + 1 if device.type == "cpu" else 1
    untagged = sum(not photo.tags for photo in photos) if settings.tag else 0
    seconds = {
        **({"tag": untagged * _tag_seconds(workspace, side, device)} if untagged else {}),
        "extract": count * _encoder_seconds(encoder.vision.to(dtype), side),
        "crf": max(0, unmasked - len(failed)) * _crf_seconds(pixels, device) / processes,
        "train-decoder": _training_seconds(encoder, settings, device, trained, mean)}
    # Last, since it trains the encoder that the others have used.
    seconds |= _joint_training_seconds(workspace, settings, encoder.vision, device, dtype)
    stored = 2 * (mean * (settings.layers * encoder.vision.width + _dim(encoder)))
    report = {"photos": count, "patches": mean, "pixels": pixels, **_totals(seconds),
              "bytes": count * stored}
    console.note(f"{counted(count, 'photo', 'photos')}: {_formatted(report)}, "
                 f"{report['bytes'] / 1e9:.1f} GB of features")
    return report


def _estimate_missing(workspace: Workspace, settings: EstimateSettings) -> JsonObject:
    """Estimate the trainings with an encoder that have no result yet; no photo is to be encoded."""
    headers = [describe(path).header for path in kinds.results_of(workspace.path, "decoder")]
    made = {header.options.get("method", header.command) for header in headers if header}
    settings = replace(settings, student="" if "train-student" in made else settings.student,
                       finetune=0 if "finetune" in made else settings.finetune)
    if not (settings.student or settings.finetune):
        return dict(_NOTHING)
    device = find_device(settings.device)
    report = _NOTHING | _totals(_joint_training_seconds(
        workspace, settings, models.load_main(workspace, device).vision, device,
        find_precision(settings.precision, device, console.warn)))
    console.note(_formatted(report))
    return report


def _totals(seconds: Mapping[str, float]) -> JsonObject:
    return {"seconds": {name: round(value, 1) for name, value in seconds.items()},
            "total": round(sum(seconds.values()), 1)}


def show(_result: JsonObject, _values: Mapping[str, object]) -> str:
    """Return nothing, since a note has said it."""
    return ""


def _formatted(report: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {console.duration(value)}"
                      for name, value in report["seconds"].items())
    return f"about {console.duration(report['total'])} on this machine ({parts})"


def _sizes(workspace: Workspace, photos: Sequence[Photo]
           ) -> tuple[list[tuple[int, int]], list[str]]:
    """Read (height, width) of some photos, spread over all, and the reasons for failures.

    If none of these is readable, others are tried.
    """
    sizes: list[tuple[int, int]] = []
    failed: list[str] = []
    spread = photos[:: max(1, len(photos) // _LOOKED_AT)]
    tried = {photo.id for photo in spread}
    for photo in [*spread, *(photo for photo in photos if photo.id not in tried)]:
        if sizes and photo.id not in tried:
            break
        path: Path = workspace.image_path(photo)
        try:
            sizes.append(photo_size(path))
        except OSError as error:
            failed.append(describe_failure(path, error))
    return sizes, failed


def _seconds(work: Callable[[], object], rounds: int = 2) -> float:
    """Return the fastest of a few rounds, after one to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _blank(vision: tower.Tower, side: int) -> torch.Tensor:
    """Return a photo of side × side patches."""
    weight = vision.weight
    return torch.zeros(1, 3, side * vision.patch, side * vision.patch, device=weight.device,
                       dtype=weight.dtype)


def _dim(encoder: encoders.Encoder) -> int:
    """Return the dimensions of a patch embedding."""
    with torch.no_grad():
        return int(encoder.vision(_blank(encoder.vision, 2), attention=False).patches.shape[-1])


def _encoder_seconds(vision: tower.Tower, side: int) -> float:
    """Return the seconds per photo of side × side patches."""
    pixels = _blank(vision, side)
    with torch.no_grad():
        return _seconds(lambda: vision(pixels, attention=False,
                                       layers=[vision.depth - 1]).patches.sum().item())


def _tag_seconds(workspace: Workspace, side: int, device: torch.device) -> float:
    """Return the seconds per photo of side × side patches, with equally likely words."""
    encoder = models.load_clip_vision(workspace, device)
    vision, classes = encoders.with_head(encoder, "`tag`"), max(len(workspace.classes), 1)
    rows = F.normalize(torch.randn(classes, _dim(encoder)), dim=-1)
    words = tagging.Vocabulary.of(rows.to(device), torch.arange(1, len(rows) + 1, device=device))
    pixels, settings = _blank(vision, side).float(), tag.tagging_of(tag.TagSettings())
    return _seconds(lambda: tagging.tag_scores(vision, pixels, words, settings).sum().item(), 1)


def _crf_seconds(pixels: int, device: torch.device) -> float:
    """Return the seconds per photo with two labels, of one process, as `crf` would run here."""
    side = max(8, round(pixels ** 0.5))
    rng = np.random.default_rng(0)
    # Smooth, as photos are: noise would fill the lattice.
    coarse = rng.integers(0, 255, (side // 8 + 1, side // 8 + 1, 3)).astype(np.uint8)
    photo = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:side, :side])
    scored = [inputs.ScoredPhoto(photo, rng.random((2, side, side)).astype(np.float32))]
    method = find_method("label_refiners", "densecrf").load()
    used = method.Settings(kernels="weclip")
    where = method.runs_on(used, device)
    return _seconds(lambda: method.refine_labels(scored, used, where), 1)


def _training_seconds(encoder: encoders.Encoder, settings: EstimateSettings, device: torch.device,
                      photos: int, patches: int) -> float:
    """Return the seconds of a training: its steps, or its pass if the method has no steps."""
    method = load_method(SegmenterMethod, settings.segmenter)
    if not method.stepless:
        return settings.iters * _step_seconds(encoder, settings, device)
    network = _network(encoder, settings).to(device)
    photo = inputs.LabelledPhoto(
        torch.randn(settings.layers, patches, encoder.vision.width, device=device), None,
        (1, patches), torch.randint(0, 7, (4, 4 * patches), dtype=torch.uint8, device=device))

    def seconds(photos: int) -> float:
        return _seconds(lambda: method.fit(
            network, [photo] * photos, method.Settings(), lambda sums: sums), 1)

    # A pass ends in a solution, whose time does not grow with the photos.
    return photos * max(seconds(4) - seconds(1), 0.0) / 3


def _step_seconds(encoder: encoders.Encoder, settings: EstimateSettings, device: torch.device
                  ) -> float:
    """Return the seconds per step of the segmenter."""
    if not settings.iters:
        return 0.0
    side, network = settings.crop, _network(encoder, settings).to(device)
    used = _training_inputs.training_of(_training_inputs.TrainDecoderSettings(
        iters=3, batch_size=settings.batch_size, crop=side, optimizer="adamw",
        lambda_rsc=float(network.in_joint_space)), torch.float32)
    batch = training.CropBatch(
        torch.randn(used.batch_size, settings.layers, side * side, encoder.vision.width),
        F.normalize(torch.randn(used.batch_size, side * side, network.prototypes.shape[1]), dim=-1),
        torch.randint(0, 7, (used.batch_size, 4 * side, 4 * side), dtype=torch.uint8),
        torch.ones(used.batch_size, side * side, dtype=torch.bool),
        [torch.tensor([1, 2])] * used.batch_size)
    records = training.train(network, training.make_optimizer(network, used), used,
                             iter([batch] * 3))
    return _seconds(lambda: next(records)[0].item())


def _joint_training_seconds(workspace: Workspace, settings: EstimateSettings, vision: tower.Tower,
                            device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the seconds of each training with an encoder; finetuning changes the given one."""
    classes, seconds = 1 + len(workspace.classes), dict[str, float]()
    if settings.student:
        seconds["train-student"] = settings.student_iters * _student_seconds(
            workspace, settings.student, classes, device, dtype)
    if settings.finetune:
        method = load_method(SegmenterMethod, "finetune")
        used: Any = method.Settings()
        layers = tuple(features.parse_layers("spread", vision.depth))
        network = method.build(inputs.SegmenterParts(
            layers, vision.width, F.normalize(torch.randn(classes, 1), dim=-1),
            torch.arange(classes)), used)
        blocks = used.blocks if isinstance(vision, vit.VisionTower) else 0
        seconds["finetune"] = settings.finetune * settings.batch_size * _joint_seconds(
            vision, network, joint.JointSettings(
                used.average, blocks, doubt=used.doubt, lambda_tags=used.lambda_tags),
            settings.crop, dtype, device)
    return seconds


def _student_seconds(workspace: Workspace, name: str, classes: int, device: torch.device,
                     dtype: torch.dtype) -> float:
    """Return the seconds per step of `train-student` at its defaults."""
    try:
        source = encoders.find_encoder(DEFAULT_STUDENT if name == "small" else name,
                                       (Path(), workspace.path))
        vision = encoders.load_encoder(source, device).vision
    except VplError as error:
        error.hint = error.hint.replace("`encoder=", "`student=")
        raise
    head = segmenter.LightHead(tuple(features.parse_layers("spread", vision.depth)), vision.width,
                               classes, StudentSettings.width)
    return StudentSettings.batch_size * _joint_seconds(
        vision, head, joint.JointSettings(StudentSettings.average), StudentSettings.crop, dtype,
        device, soft=True)


def _joint_seconds(vision: tower.Tower, network: segmenter.SegmenterNetwork,
                   settings: joint.JointSettings, crop: int, dtype: torch.dtype,
                   device: torch.device, *, soft: bool = False) -> float:
    """Return the seconds per crop when a network is trained together with its encoder."""
    steps = training.StepSettings(iterations=3, batch_size=1, crop=crop, lr=1e-5, power=0.9,
                                  warmup=1, seed=0, precision=dtype)
    pair = joint.Pair(vision.float(), network.to(device), settings)
    labels, classes = crop * LABELS_PER_PATCH, len(network.classes)
    batch = joint.PixelBatch(
        torch.randn(1, 3, crop * vision.patch, crop * vision.patch),
        torch.zeros(1, labels, labels, dtype=torch.uint8),
        torch.ones(1, crop, crop, dtype=torch.bool),
        torch.ones(1, classes, dtype=torch.bool), torch.ones(1, classes, dtype=torch.bool),
        torch.full((1, classes, labels, labels), 1 / classes) if soft else None)
    records = joint.train_jointly(pair, joint.joint_optimizer(pair, steps), steps, [batch] * 3)
    return _seconds(lambda: next(records)[0].item())


def _network(encoder: encoders.Encoder, settings: EstimateSettings) -> segmenter.SegmenterNetwork:
    """Build an untrained segmenter of seven classes."""
    method = find_method("segmenters", settings.segmenter).load()
    wanted = {"width": settings.width, "residual": True}
    known = {entry.name for entry in described(method.Settings)}
    prototypes = F.normalize(torch.randn(24, _dim(encoder)), dim=-1)
    return method.build(
        inputs.SegmenterParts(tuple(range(settings.layers)), encoder.vision.width, prototypes,
                              torch.arange(24) % 7),
        method.Settings(**{name: value for name, value in wanted.items() if name in known}))
