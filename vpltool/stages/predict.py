"""`vpltool predict`: masks of any photos, by a trained decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import VplError, check_choice, near_name
from vpltool.formats import (
    Header,
    OutputFolder,
    Workspace,
    expect_header,
    finish_all,
    identity_of_file,
    identity_of_many,
    open_input,
    open_output,
    open_workspace,
    read_tensors,
)
from vpltool.options import (
    BatchSize,
    Device,
    Limit,
    NoEffect,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Split,
    Workers,
    warn_about_no_effect,
)
from vpltool.parallel.batches import FeatureBatch, feature_batches
from vpltool.parallel.threads import write_behind
from vpltool.stage import Stage
from vpltool.stages import _artifacts
from vpltool.stages.extract import smaller_photos

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.decoder import Decoder
    from vpltool.parallel.photos import Batch

STAGE = Stage(order=80, panel="3. Masks and segmenter", reads=("decoder", "features"),
              writes=("predictions", "probabilities"))

NO_EFFECT = (
    NoEffect("max_side", {"source": ("features",)}, "photos are as extract saw them; add --source "
                                                "photos"),
    NoEffect("precision", {"source": ("features",)}, "no encoder is run; add --source photos"),
)


def predict(
    ctx: typer.Context,
    images: Annotated[list[Path] | None, typer.Argument(
        help="Photos or folders of photos, tagged or not; default: those of --split.")] = None,
    decoder: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="The decoder; default: the only one, or vision-refined.",
    )] = "",
    split: Split = "val",
    scales: Annotated[str, typer.Option(
        metavar="LIST", help="Sizes at which a photo is seen, averaged: 1,0.75 is WeCLIP's.",
    )] = "1",
    flip: Annotated[bool, typer.Option(
        "--flip/--no-flip", help="See it mirrored too, and average.")] = False,
    average: Annotated[str, typer.Option(
        help="What is averaged over scales and mirrored copies: probabilities, or logits as "
             "WeCLIP.")] = "probabilities",
    source: Annotated[str, typer.Option(
        help="photos; or features: stored layers of the split, one scale, no flip, much faster; "
             "auto: features where they serve.")] = "auto",
    tags: Annotated[bool, typer.Option(
        "--tags/--no-tags",
        help="Let only classes that a photo is tagged with compete, as CAMs do.")] = False,
    probabilities: Annotated[bool, typer.Option(
        "--probabilities/--labels-only",
        help="Also store class probabilities, which crf prefers to labels.")] = True,
    max_side: Annotated[int, typer.Option(
        min=0, help="Scale longer photos down to this first; 0: never.", metavar="PIXELS")] = 1024,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = 4,
    workers: Workers = -1,
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Segment photos: palette PNGs at the photo's own size. They need no tags.

    Example: vpltool predict --split val --scales 1,0.75 --flip

    Example: vpltool predict holiday/ --out masks-of-holiday

    Next: vpltool eval --split val, or vpltool crf --what predictions/NAME --split val
    """
    console.set_quiet(quiet)
    check_choice("source", source, ("auto", "features", "photos"))
    check_choice("average", average, ("probabilities", "logits"))
    workspace = open_workspace(ctx.obj)
    factors = _scales(scales)
    path = _find_decoder(ctx.obj, decoder)
    found = expect_header(path, "decoder")
    if "checkpoint" in found.facts:
        raise VplError(f"{path} is the checkpoint of a run that was stopped",
                       "run the same vpltool train-decoder again to finish it")
    where = split
    workspace.check_classes(found, path)
    tagged = _tags_of(workspace, split, images) if tags else {}
    if images:
        paths, where = _named_photos(images), "photos"
        paths = dict(list(paths.items())[: limit or None])
        source = "photos"
    else:
        paths = {photo.id: workspace.image_path(photo) for photo in workspace.photos(split, limit)}
    stored = source != "photos" and _features_serve(ctx.obj, found, factors, flip, source,
                                                           split, list(paths))
    source = "features" if stored else "photos"
    warn_about_no_effect(ctx, NO_EFFECT, {"source": source})
    options = {"split": where, "scales": factors, "flip": flip, "max_side": max_side,
               "source": source,
               **({"average": average} if average != "probabilities" else {})}
    if not stored:
        options["precision"] = precision
        from vpltool.parallel.device import find_device, find_precision

        find_precision(precision, find_device(device))
    inputs = {"decoder": identity_of_file(path), "classes": workspace.classes_identity}
    if tags:
        options["tags"] = True
        inputs["tags"] = workspace.tags_identity(split)
    if images:
        # The same name may be another folder's photo next time.
        inputs["photos"] = identity_of_many(
            {key: str(place.resolve()) for key, place in paths.items()})
    if stored:
        inputs["features"] = open_input(ctx.obj / "features" / split, ("features",)).identity
    folders = [("predictions", out or ctx.obj / "predictions" / path.stem / where)]
    if probabilities and not (out or images):
        folders.append(("probabilities", ctx.obj / "probabilities" / path.stem / where))
    outputs = [open_output(folder, Header(kind=kind, command="predict", options=options,
                                          inputs=inputs, model=found.model),
                           list(paths), overwrite=overwrite) for kind, folder in folders]
    todo = {key: paths[key] for output in outputs for key in output.todo}
    task = _Task(workspace, path, factors, flip, average, max_side, str(device), precision,
                 batch_size, workers)
    with (console.progress(f"predict {path.stem} {where}", len(todo)) as advance,
          write_behind(_write, _waiting(task) if todo else 0) as write):
        if todo:
            for seen in _from_features(task, split, todo) if stored else _from_photos(task, todo):
                write(outputs, seen, tagged.get(seen.id))
                advance()
    finish_all(outputs)


@dataclass(frozen=True)
class _Task:
    workspace: Workspace
    decoder: Path
    scales: list[float]
    flip: bool
    average: str
    max_side: int
    device: str
    precision: str
    batch_size: int
    workers: int


@dataclass(frozen=True)
class _Seen:
    """A photo's class probabilities (classes, 4h, 4w) and its size; or the reason why not."""

    id: str
    probabilities: Tensor | None
    size: tuple[int, int] = (0, 0)
    failure: str = ""


def _tags_of(workspace: Workspace, split: str, images: Sequence[Path] | None
             ) -> dict[str, list[int]]:
    if images:
        raise VplError("--tags is for photos of the workspace: named ones have no tags",
                       "--split NAME, or leave --tags out")
    return {photo.id: workspace.indices_of(photo) for photo in workspace.photos(split)}


def _find_decoder(work: Path, choice: str) -> Path:
    names = sorted(path.stem for path in (work / "decoder").glob("*.safetensors")
                   if not path.stem.endswith(".checkpoint"))
    if not choice:
        if not names:
            raise VplError(f"no decoder in {work / 'decoder'}", "vpltool train-decoder")
        preferred = [name for name in ("vision-refined", "vision") if name in names]
        if len(names) > 1 and not preferred:
            raise VplError(f"{work / 'decoder'} holds several decoders",
                           f"--decoder {' or '.join(names)}")
        return work / "decoder" / f"{(preferred or names)[0]}.safetensors"
    named = work / "decoder" / f"{choice}.safetensors"
    for place in (named, Path(choice)):
        if place.is_file():
            return place
    raise VplError(f"no decoder called `{choice}`",
                   near_name(choice, names) if names else "vpltool train-decoder")


def _scales(choice: str) -> list[float]:
    try:
        factors = [float(part) for part in choice.split(",")]
    except ValueError:
        factors = []
    if not factors or min(factors) <= 0:
        raise VplError(f"--scales {choice}: no list of factors", "for example --scales 1,0.75")
    return factors


def _named_photos(images: Sequence[Path]) -> dict[str, Path]:
    from vpltool.datasets.layouts import PHOTO_SUFFIXES

    paths: dict[str, Path] = {}
    for place in images:
        if not place.exists():
            raise VplError(f"{place} is not there", "give photos, or folders of photos")
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if place.is_dir() and file.suffix.lower() not in PHOTO_SUFFIXES:
                continue
            name = file.relative_to(place) if place.is_dir() else Path(file.name)
            key = name.with_suffix("").as_posix()
            if key in paths:
                raise VplError(f"{paths[key]} and {file} would both be {key}.png",
                               "predict them in two runs with two --out")
            paths[key] = file
    if not paths:
        raise VplError(f"no photo in {', '.join(map(str, images))}", "give photos, or folders")
    return paths


def _features_serve(work: Path, decoder: Header, scales: list[float], flip: bool, source: str,
                    split: str, ids: Sequence[str]) -> bool:
    """Tell whether stored features can take the place of the photos.

    Raises:
        VplError: they were asked for and cannot; the message says why.
    """
    folder = work / "features" / split
    reason = ""
    if not (folder / "artifact.json").exists():
        reason = f"no features in {folder}"
    elif scales != [1.0] or flip:
        reason = "stored features are of one scale, not mirrored"
    else:
        features = open_input(folder, ("features",))
        held = features.header.options
        if not (set(decoder.options["layers"]) <= set(held["layers"])
                and "patches" in held["keep"] and "patches" not in held):
            reason = f"{folder} lacks layers or patches that the decoder reads"
        elif any(not features.path_of(key).exists() and key not in features.failed for key in ids):
            reason = f"{folder} holds some of the photos alone"
        else:
            _artifacts.check_same_model(features.header.model, decoder.model,
                                        f"{folder} and the decoder")
    if reason and source == "features":
        raise VplError(f"--source features: {reason}", "--source photos")
    return not reason


def _load_decoder(task: _Task) -> Decoder:
    from vpltool.core.decoder import Decoder
    from vpltool.parallel.device import find_device

    header, tensors = read_tensors(task.decoder, "decoder")
    decoder = Decoder.from_config(header.facts["config"])
    decoder.load_state_dict(tensors)
    return decoder.eval().requires_grad_(False).to(find_device(task.device))


def _from_features(task: _Task, split: str, todo: dict[str, Path]) -> Iterator[_Seen]:
    from vpltool.core.decoder import layers_of
    from vpltool.core.photos import describe_failure, photo_size
    from vpltool.core.segment import probabilities_of
    from vpltool.parallel.memory import run_within_memory

    decoder = _load_decoder(task)
    features = open_input(task.workspace.path / "features" / split, ("features",))
    ids = features.available(todo)
    for key in set(todo) - set(ids):
        yield _Seen(key, None, failure=features.failed[key])
    place = decoder.prototypes.device

    def decode(batch: FeatureBatch) -> Tensor:
        index = batch.tensors["layer_index"][0].tolist()
        layers = layers_of(batch.tensors["layers"], index, decoder.shape.layers)
        return probabilities_of(
            decoder, layers.to(place, non_blocking=True).float(),
            batch.tensors["patches"].to(place, non_blocking=True).float(), batch.grid)

    batches = feature_batches(features, ids, ["layers", "layer_index", "patches"],
                              task.batch_size, device=place)
    for batch, result in run_within_memory(batches, decode, warn=console.warn,
                                 lower=lambda _: _artifacts.smaller_features_hint(features.header)):
        for key, part in zip(batch.ids, result, strict=True):
            try:
                yield _Seen(key, part, photo_size(todo[key]))
            except OSError as error:
                yield _Seen(key, None, failure=describe_failure(todo[key], error))


def _from_photos(task: _Task, todo: dict[str, Path]) -> Iterator[_Seen]:
    from vpltool.clip.load import load_clip
    from vpltool.core.photos import PhotoSettings
    from vpltool.core.segment import segment
    from vpltool.parallel.device import find_device, find_precision, worker_count
    from vpltool.parallel.memory import run_within_memory
    from vpltool.parallel.photos import load_batches

    decoder = _load_decoder(task)
    place = find_device(task.device)
    clip = load_clip(task.workspace.model, task.workspace.pretrained, place,
                     base=task.workspace.path, normalise=task.workspace.normalise)
    _artifacts.check_same_model(clip.identity, expect_header(task.decoder, "decoder").model,
                                f"the workspace's model and {task.decoder}")
    vision = clip.vision.to(find_precision(task.precision, place))
    settings = PhotoSettings(vision.patch, clip.mean, clip.std, max(task.scales), task.max_side)
    scales = [scale / max(task.scales) for scale in task.scales]

    def run(batch: Batch) -> Tensor:
        if not batch.ids:
            return batch.pixels
        return segment(vision, decoder, batch.pixels.to(place, non_blocking=True), scales,
                       flip=task.flip, average=task.average)

    batches = load_batches(list(todo.items()), settings, batch_size=task.batch_size,
                           workers=worker_count(task.workers), device=place)
    for batch, result in run_within_memory(batches, run, warn=console.warn, lower=smaller_photos):
        for key, reason in batch.failed.items():
            yield _Seen(key, None, failure=reason)
        for key, size, part in zip(batch.ids, batch.sizes, result, strict=True):
            yield _Seen(key, part, size)


def _waiting(task: _Task) -> int:
    """Predictions that may wait to be written while a GPU makes the next ones."""
    from vpltool.parallel.device import find_device

    return task.batch_size if find_device(task.device).type == "cuda" else 0


def _write(outputs: Sequence[OutputFolder], seen: _Seen, tagged: Sequence[int] | None) -> None:
    from vpltool.core.segment import keep_likely, labels_of, only_classes

    if tagged is not None and seen.probabilities is not None:
        seen = replace(seen, probabilities=only_classes(seen.probabilities, tagged))
    for output in outputs:
        if seen.probabilities is None:
            output.fail(seen.id, seen.failure)
        elif seen.id not in output.todo:
            continue
        elif output.header.kind == "predictions":
            output.write_labels(seen.id, labels_of(seen.probabilities, seen.size))
        else:
            scores, classes = keep_likely(seen.probabilities)
            output.write_tensors(seen.id, {"cam": scores.half(), "classes": classes})
