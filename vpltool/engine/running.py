"""Running a trained segmenter: its network with its encoder, over photos or stored layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vpltool import console, options
from vpltool.clip import encoders, stored_towers
from vpltool.core import segment
from vpltool.core.photos import PhotoSettings, describe_failure, photo_size, read_photo
from vpltool.engine.features import open_features, smaller_photos_hint, smaller_side_hint
from vpltool.engine.headers import check_same_model
from vpltool.engine.models import load_main, with_weights
from vpltool.engine.photo_work import Failed, Made, count_sizes, run_batches
from vpltool.engine.segmenters import has_tower, read_segmenter, read_tower, reads_of
from vpltool.engine.tiles import TiledSegmenter, divided, find_tiles
from vpltool.errors import VplError, counted
from vpltool.formats import Header, InputFolder, Workspace
from vpltool.formats.kinds import place
from vpltool.formats.manifest import again
from vpltool.lazy import Tensor, torch
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.parallel import photos
from vpltool.parallel.batches import FeatureBatch, feature_batches
from vpltool.parallel.device import find_device, find_precision, worker_count
from vpltool.settings import NoEffect, setting

_MOST_PATCHES = 16_384
"""A photo with more patches is refused on a CPU: attention grows with their square, and a ViT-B/16
takes three minutes for these (16 s a block on one core)."""


def stand_in_workspace(path: Path, model: Mapping[str, str], classes: Sequence[str] = (), *,
                       pretrained: str = "") -> Workspace:
    """A workspace that exists only in memory, around a segmenter that was given away.

    Args:
        path: the folder that outputs go to, and that a relative path of weights is relative to.
        model: identity of the encoder, as headers have it.
        classes: names of the classes.
        pretrained: its weights; default: those that the identity names.
    """
    encoder = model.get("encoder", "")
    clip = ("", "") if encoder else (model.get("name", ""),
                                     pretrained or model.get("pretrained", ""))
    return Workspace(path, "", "", tuple(classes), (), *clip,
                     encoder=with_weights(encoder, pretrained) if pretrained else encoder,
                     normalise=model.get("normalise", "model"))


def load_trained(path: Path, workspace: Workspace, device: torch.device) -> TrainedSegmenter:
    """Load a decoder or bundle together with its encoder.

    Args:
        path: the file.
        workspace: names the CLIP, unless the file is a bundle that holds its tower.
        device: where both go.

    Raises:
        VplError: the file is neither, or the CLIP is not to be had, or is another one.
    """
    header, network = read_segmenter(path)
    encoder = _stored_encoder(path, header, device) or _loaded_encoder(path, header, workspace,
                                                                       device)
    return TrainedSegmenter(path, header, network.to(device), encoder)


def _stored_encoder(path: Path, header: Header, device: torch.device) -> encoders.Encoder | None:
    """The tower that a bundle or decoder holds; None if there is none."""
    if not has_tower(header):
        return None
    facts = header.facts
    try:
        mean, std = (tuple(map(float, facts[name])) for name in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(f"{mean}, {std} are not of RGB")
        tower = stored_towers.tower_from_config(facts["tower"], read_tower(path))
    except (ValueError, KeyError, TypeError) as error:
        raise VplError(f"{path} does not hold the tower that its header names",
                       "`export('bundle')` writes it again" if header.kind == "bundle"
                       else again(header)) from error
    return encoders.Encoder(tower.to(device), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]),
                            header.model)


def _loaded_encoder(path: Path, header: Header, workspace: Workspace, device: torch.device
                    ) -> encoders.Encoder:
    try:
        encoder = load_main(workspace, device)
    except VplError as error:
        if header.kind != "bundle":
            raise
        raise VplError(f"{path} only names its encoder: {error.message}",
                       "`export('bundle')` without `clip='identity'` puts it into the file"
                       ) from error
    check_same_model(encoder.identity, header.model,
                     f"{workspace.encoder or workspace.pretrained} and {path}")
    return encoder


@dataclass(frozen=True)
class Segmented:
    """A photo's class probabilities (classes, 4h, 4w), and its (height, width)."""

    probabilities: Tensor
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RunsSegmenter(options.PerPhoto, shared=True):
    """Settings that say how a segmenter sees photos."""

    split: str = options.split("val")
    scales: str = setting("1", "Scales whose results are averaged; WeCLIP: 1,0.75.",
                          metavar="LIST")
    flip: bool = setting(False, "Also predict the mirrored photo, and average.")
    average: str = setting(
        "probabilities", "What is averaged; probabilities, or logits as in WeCLIP.",
        choices=("probabilities", "logits"), record="changed")
    source: str = setting(
        "auto", "Read photos, features or auto; features: stored layers of the split, one scale, "
                "no flip, much faster; auto: features where they suffice.",
        choices=("auto", "features", "photos"))
    features: Path | None = options.features()
    max_side: int | None = setting(
        None, "Scale longer photos down to this first; 0: never; default: as in training.", low=0,
        metavar="PIXELS")
    tile: str = setting(
        "", "See photos in overlapping tiles of this side, not scaled down unless max-side says "
            "so; auto: photos longer than three times the side of training, in tiles of that side.",
        metavar="PIXELS|auto", record="changed")
    overlap: float = setting(
        0.25, "Overlap of neighbouring tiles, as a share of a tile.", low=0, high=0.9,
        record="changed", brief=False,
        no_effect=[NoEffect({"tile": ("",)}, "photos are seen whole")])
    precision: str = options.precision()
    batch_size: int = options.batch_size(4)
    workers: int = options.workers()


def serving_features(workspace: Workspace, header: Header, settings: RunsSegmenter,
                     scales: Sequence[float], ids: Sequence[str]) -> InputFolder | None:
    """Find stored features of a split that can take the place of the photos.

    Args:
        workspace: where they are looked for.
        header: of the decoder.
        settings: of `predict`.
        scales: sizes at which photos are to be seen.
        ids: of the photos.

    Raises:
        VplError: they were asked for and cannot; the message says why.
    """
    folder = settings.features or place(workspace.path, "features", settings.split)
    if settings.source == "photos":
        return None
    if not (folder / "artifact.json").exists():
        if settings.source == "features":
            raise VplError(f"`source='features'`: no features in {folder}", "`source='photos'`")
        return None
    features = open_features(workspace, settings.features, settings.split)
    if reason := _reason_against_features(header, features, settings, scales, ids):
        if settings.source == "features":
            raise VplError(f"`source='features'`: {reason}", "`source='photos'`")
        console.note(f"photos are read, since {reason}")
        return None
    check_same_model(features.header.model, header.model,
                     f"{features.path} and the decoder")
    return features


def _reason_against_features(header: Header, features: InputFolder, settings: RunsSegmenter,
                             scales: Sequence[float], ids: Sequence[str]) -> str:
    """Say why features cannot take the place of the photos; empty if they can."""
    if has_tower(header):
        return "the segmenter has an encoder of its own"
    held = features.header.options
    reads, layers = reads_of(header)
    if settings.tile:
        return "stored features are not of the tiles that a segmenter sees"
    if len(scales) > 1 or settings.flip:
        return "stored features are of one scale, not mirrored"
    side = side_of(header, settings.max_side)
    for name, wanted in (("scale", scales[0]), ("max_side", side)):
        if held[name] != wanted:
            return (f"{features.path} was made with `{name}={held[name]}`, not "
                    f"`{name}={wanted}`")
    if not (reads <= set(held["keep"]) and layers <= set(held.get("layers") or ())
            and ("patches" not in reads or held.get("patches", "block") == "block")):
        return f"{features.path} lacks layers or patches that the decoder reads"
    if any(not features.holds(key) and key not in features.failed for key in ids):
        return f"{features.path} holds only some of the photos"
    return ""


def from_features(decoder: Path, features: InputFolder, paths: Mapping[str, Path],
                  settings: RunsSegmenter) -> Iterator[Made]:
    """Segment photos from their stored layers.

    Args:
        decoder: its file.
        features: they hold what it reads.
        paths: id to path of each photo, for its size.
        settings: device and batch size.

    Returns:
        yields a `Segmented` for each photo.

    Raises:
        VplError: the decoder cannot be read.
    """
    from vpltool.core.decoder import layers_of

    device = find_device(settings.device)
    network = read_segmenter(decoder)[1].to(device)
    reads = network.reads

    def decode(batch: FeatureBatch) -> Iterator[Made]:
        tensors = batch.tensors
        layers = (layers_of(tensors["layers"], tensors["layer_index"][0].tolist(), network.layers)
                  if "layers" in reads else None)
        layers, patches = (
            None if tensor is None else tensor.to(device, non_blocking=True).float()
            for tensor in (layers, tensors["patches"] if "patches" in reads else None))
        result = segment.probabilities_of(network, layers, patches, batch.grid)
        for key, part in zip(batch.ids, result, strict=True):
            try:
                yield key, Segmented(part, photo_size(paths[key]))
            except OSError as error:
                yield key, Failed(describe_failure(paths[key], error))

    names = [*reads, *(["layer_index"] if "layers" in reads else [])]
    batches = feature_batches(features, list(paths), names, settings.batch_size, device=device)
    return run_batches(batches, decode, lambda _: smaller_photos_hint(features.header))


def from_photos(workspace: Workspace, decoder: Path, paths: Mapping[str, Path],
                scales: Sequence[float], settings: RunsSegmenter) -> Iterator[Made]:
    """Segment photos with the CLIP of the workspace and a decoder.

    Args:
        workspace: its CLIP.
        decoder: its file, or a bundle.
        paths: id to path of each photo.
        scales: sizes at which each is seen.
        settings: how the work is done.

    Returns:
        yields a `Segmented` for each photo, or why there is none.

    Raises:
        VplError: the CLIP cannot be had, or is not that of the decoder.
    """
    device = find_device(settings.device)
    dtype = find_precision(settings.precision, device, console.warn)
    trained = load_trained(decoder, workspace, device)
    encoder, vision = trained.encoder, trained.encoder.vision.to(dtype)
    factors = [scale / max(scales) for scale in scales]
    side = side_of(trained.header, settings.max_side)
    tiled = tiled_segmenter(trained, device, scales, settings)
    large = {key: paths[key] for key in divided(paths, tiled)}

    def segment_batch(batch: photos.Batch) -> Iterator[Made]:
        if reason := too_many_patches(batch.pixels, vision.patch, device, "tile='auto'",
                                      max(scales)):
            yield from ((key, Failed(reason)) for key in batch.ids)
            return
        pixels = batch.pixels.to(device, non_blocking=True)
        result = segment.segment(vision, trained.network, pixels, factors, flip=settings.flip,
                                 average=settings.average)
        for key, size, part in zip(batch.ids, batch.sizes, result, strict=True):
            yield key, Segmented(part, size)

    rest = [entry for entry in paths.items() if entry[0] not in large]
    batches = photos.load_batches(
        rest, PhotoSettings(vision.patch, encoder.mean, encoder.std, max(scales), side),
        batch_size=settings.batch_size, workers=worker_count(settings.workers), device=device,
        sized=count_sizes(len(rest)))
    seen = (_warn_of_background(run_batches(batches, segment_batch, smaller_side_hint), side)
            if rest else ())
    return chain(seen, _in_tiles(tiled, large) if tiled else ())


def tiled_segmenter(trained: TrainedSegmenter, device: torch.device, scales: Sequence[float],
                    settings: RunsSegmenter) -> TiledSegmenter | None:
    """Return a segmenter that sees large photos in tiles; None where all are seen whole."""
    given = settings.max_side if "max_side" in settings.given else None
    tiles = find_tiles(settings.tile, settings.overlap, trained.header, given)
    if tiles is None:
        return None
    return TiledSegmenter(trained, device, tiles, scales, settings.flip, settings.average,
                          settings.batch_size)


def _in_tiles(tiled: TiledSegmenter, paths: Mapping[str, Path]) -> Iterator[Made]:
    """Segment large photos one by one."""
    for key, path in paths.items():
        try:
            rgb = read_photo(path)
        except OSError as error:
            yield key, Failed(describe_failure(path, error))
            continue
        yield key, Segmented(tiled.whole(rgb), (rgb.shape[0], rgb.shape[1]))


def too_many_patches(pixels: Tensor, patch: int, device: torch.device, other: str = "",
                     scale: float = 1) -> str:
    """Say why photos (B, 3, H, W) are not encoded whole, and what would do; empty if they are.

    Args:
        pixels: the photos, of one size.
        patch: pixels of a side of a patch.
        device: a GPU is given any number.
        other: a setting that would do, too.
        scale: how much larger these are than `max_side` makes them.
    """
    height, width = pixels.shape[2:]
    count = height * width // patch**2
    if device.type != "cpu" or count <= _MOST_PATCHES:
        return ""
    shrunk = (_MOST_PATCHES * patch**2 / (height * width)) ** 0.5
    side = (int(max(height, width) * shrunk / scale) // patch - 1) * patch
    ways = ", ".join(f"`{way}`" for way in (f"max_side={side}", other) if way)
    return (f"{count:,} patches, over {_MOST_PATCHES:,}: attention would take many minutes on a "
            f"CPU; {ways}, or a GPU")


def _warn_of_background(made: Iterator[Made], side: int) -> Iterator[Made]:
    """Warn of photos that were scaled down to a side and in which nothing was found."""
    empty = []
    for key, seen in made:
        if isinstance(seen, Segmented) and 0 < side < max(seen.size) and not (
                seen.probabilities.argmax(dim=0).any()):
            empty.append(key)
        yield key, seen
    names = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if empty[5:] else "")
    if empty:
        console.warn(f"{counted(len(empty), 'photo is', 'photos are')} all background after being "
                     f"scaled down to {side} pixels: {names}; objects may be too small "
                     f"then: try `max_side={2 * side}`")
