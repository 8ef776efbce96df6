"""`extract`: from photos to frozen features."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.clip import encoders
from vpltool.core import grids, photos, tower
from vpltool.engine import models, opening, photo_work, running
from vpltool.engine.features import SECOND, head_path, load_second, parse_kept, parse_layers
from vpltool.engine.photos import tell_of_side
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace, kinds, manifest
from vpltool.lazy import torch
from vpltool.parallel import batches
from vpltool.parallel.device import dtype_of, find_device, find_precision
from vpltool.settings import NoEffect, Stage, setting

_OF_CLIP = ("patches", "calibrated_blocks", "calibrated_heads", "layers")
"""Settings without effect on a second encoder."""

_WHOLE = ("tokens", "attention", "attentions")
"""Tensors that span all patches, so that photos encoded in windows lack them."""

_UNCALIBRATED = NoEffect({"patches": ("block", "value")}, "no path goes beside the blocks")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(options.PerPhoto):
    """Settings of `extract`."""

    split: str = options.split("train")
    encoder: str = setting(
        "", "Run a second encoder instead; for methods that read one: a file of DINO's or "
            "DINOv2's weights, timm:MODEL, or a CLIP, MODEL:PRETRAINED; words: the CLIP beside "
            "the workspace's encoder.",
        metavar="NAME-OR-FILE", record="never")
    scale: float = setting(1.0, "Factor by which photos are scaled first.", low=0.05, high=8)
    max_side: int = setting(1024, "Scale longer photos down to this first; 0: never.", low=0,
                            metavar="PIXELS")
    window: int = setting(
        0, "Encode larger photos in windows of this side, and join their patches; memory is that "
           "of one window. 0: whole photos.", low=0, metavar="PIXELS",
        record="changed", brief=False)
    overlap: float = setting(
        0.25, "Overlap of neighbouring windows, as a share of a window.", low=0, high=0.9,
        record="changed", brief=False,
        no_effect=[NoEffect({"window": (0,)}, "photos are encoded whole")])
    keep: str = setting(
        "tokens,patches,attention",
        "Tensors to store; tokens for gradcam, patches for dense and learn-prototypes, attention "
        "for refine, attentions of each block for methods that read them, layers for "
        "train-decoder.",
        metavar="LIST")
    attention_blocks: int = setting(8, "Number of last blocks whose attention is kept.", low=1,
                                    record="changed", source="CLIP-ES, official code")
    patches: str = setting(
        "block", "Kind of patch embeddings; block: the last block's output, projected; value: only "
                 "its value path (MaskCLIP); calibrated: a path parallel to the last blocks "
                 "(ExCEL).",
        choices=("block", "value", "calibrated"), record="changed")
    calibrated_blocks: int = setting(
        5, "With calibrated patches: number of last blocks that the path runs beside.", low=1,
        record="changed", source="ExCEL, official code", brief=False, no_effect=[_UNCALIBRATED])
    calibrated_heads: str = setting(
        "sum", "With calibrated patches: how the attention of the heads is combined: sum or mean.",
        choices=("sum", "mean"), record="changed", brief=False,
        source="ExCEL, official code", no_effect=[_UNCALIBRATED])
    layers: str = setting("", "Blocks whose output is stored as `layers`; 0 is the first; spread: "
                              "four, evenly spaced; default: all but the last.", metavar="LIST")
    store: str = options.store()
    precision: str = options.precision()
    workers: int = options.workers()


STAGE = Stage(order=30, panel="1. Begin", reads=("workspace", "images"),
              writes=("features", "head"), settings=ExtractSettings)


def run(workspace: Workspace, settings: ExtractSettings) -> list[Path]:
    """Run the frozen encoder over photos once, and store what later commands need.

    Photos are resized to multiples of the patch, each side separately, without a crop (CLIP-ES).
    On a CPU, photos of more than 16,384 patches are refused, with a side that is small enough.
    --encoder runs another frozen vision transformer and writes to features-second/SPLIT. With
    --window, photos of any size fit into memory; tensors that span all patches are then not stored.

    Example: vpltool extract --split train

    Next: vpltool cam --prototypes text

    Returns:
        the folder of features.

    Raises:
        VplError: the model cannot be had, or a setting does not fit it.
        PhotosFailed: some photos cannot be read.
    """
    second = settings.encoder not in ("", models.WORDS)
    kept = _kept(settings, second=second)
    opened = opening.open_inputs(workspace, settings, ("photo",))
    device = find_device(settings.device)
    dtype = find_precision(settings.precision, device, console.warn)
    named, inputs = "", dict[str, Path]()
    if second:
        opened = opened.without_effect(dict.fromkeys(
            _OF_CLIP, "a second encoder has no joint space, and its layers are not kept"))
        encoder, named, inputs = load_second(workspace, settings.encoder, device)
    else:
        load = models.load_clip_vision if settings.encoder else models.load_main
        encoder = load(workspace, device)
    least = photos.LEAST_PATCHES * encoder.vision.patch
    if 0 < settings.max_side < least:
        raise VplError(f"`max_side={settings.max_side}` is less than {photos.LEAST_PATCHES} of the "
                       f"encoder's patches of {encoder.vision.patch} pixels",
                       f"`max_side={least}` or more")
    kept = _kept_of_encoder(encoder, settings, kept)
    layers = parse_layers(settings.layers, encoder.vision.depth) if "layers" in kept else []
    header = opened.header(
        "features", "extract", model=encoder.identity, inputs=inputs,
        options={"keep": list(kept), "layers": layers, "precision": settings.precision,
                 **({"encoder": encoder.identity["name"]} if settings.encoder else {})})
    if second:
        header = replace(header, call=header.call | {"encoder": named})
    home = kinds.SECOND_FOLDER if settings.encoder else "features"
    folder = settings.out or workspace.path / home / settings.split
    # An encoder that runs its own code has none.
    head = None if second else getattr(encoder.vision, "head", None)
    beside = {} if head is None else {head_path(folder): (
        Header(kind="head", command="extract", model=encoder.identity,
               facts={"config": head.config}), head.state_dict())}
    tells = settings.max_side and "max_side" in settings.given
    # In a recipe the side is always given: it is told of only where it has changed.
    changed = tells and _side_before(folder) not in (0, settings.max_side)

    def start(todo: list[str]) -> Iterator[photo_work.Made]:
        if tells:
            tell_of_side(opened.paths(todo).values(), settings.max_side,
                         console.note if changed else console.advise)
        return _start(encoder, settings, kept, layers, opened.paths(todo), device, dtype)

    return opened.make(f"extract {settings.split}", {folder: header}, start, beside=beside)


def _side_before(folder: Path) -> int:
    """Return the side to which photos of existing features were scaled down; 0: there are none."""
    with contextlib.suppress(VplError):
        if (folder / manifest.MANIFEST).exists():
            return int(manifest.manifest_of(folder).header.options.get("max_side", 0))
    return 0


def _start(encoder: encoders.Encoder, settings: ExtractSettings, kept: tuple[str, ...],
           layers: list[int], paths: dict[str, Path], device: torch.device, dtype: torch.dtype
           ) -> Iterator[photo_work.Made]:
    """Set up the tower; return an iterator over each photo's features."""
    vision = encoder.vision.to(dtype)
    patches = ("none" if "patches" not in kept
               else settings.patches if settings.encoder in ("", models.WORDS) else "last")
    beside = (tower.Calibration(settings.calibrated_blocks, settings.calibrated_heads)
              if patches == "calibrated" else None)
    store = dtype_of(settings.store)
    window = settings.window // vision.patch
    if settings.window and not window:
        raise VplError(f"`window={settings.window}` is less than a patch, {vision.patch} pixels",
                       f"for example `window={32 * vision.patch}`")

    def encode(batch: batches.Batch) -> Iterator[photo_work.Made]:
        pixels = batch.pixels.to(device, non_blocking=True).to(dtype)
        grid = torch.tensor([side // vision.patch for side in pixels.shape[2:]])
        if window and max(grid.tolist()) > window:
            fields = grids.encode_windows(
                vision, pixels, window, settings.overlap, at_once=settings.batch_size,
                patches=patches, layers=layers, calibration=beside, store=store)
        else:
            pieces = f"window={max(512 // vision.patch, 1) * vision.patch}"
            if reason := running.too_many_patches(pixels, vision.patch, device, pieces,
                                                  settings.scale):
                yield from ((key, photo_work.Failed(reason)) for key in batch.ids)
                return
            features = vision(pixels, patches=patches, attention="attention" in kept,
                              attentions="attentions" in kept, layers=layers,
                              attention_blocks=settings.attention_blocks, calibration=beside)
            fields = {name: getattr(features, name).to(store).cpu() for name in kept}
        index = {"layer_index": torch.tensor(layers)} if layers else {}
        for number, key in enumerate(batch.ids):
            yield key, {"grid": grid, **index,
                        **{name: field[number] for name, field in fields.items()}}

    return photo_work.run_photos(
        paths, photos.PhotoSettings(vision.patch, encoder.mean, encoder.std, settings.scale,
                                    settings.max_side),
        encode, device=device, workers=settings.workers,
        batch_size=1 if window else settings.batch_size)


def _kept(settings: ExtractSettings, *, second: bool) -> tuple[str, ...]:
    """Return the tensors to keep: of those requested, what a second encoder and windows allow."""
    kept = parse_kept("keep", settings.keep)
    if not kept:
        raise VplError("`keep=''` is empty", f"one or more of {', '.join(kinds.FEATURE_TENSORS)}")
    if second:
        readable = tuple(SECOND.values())
        kept = _narrowed(settings, kept, readable, "nothing reads {} of a second encoder",
                         f"`keep={','.join(readable)!r}`, the default with `encoder`")
    if settings.window:
        if 0 < settings.max_side <= settings.window:
            raise VplError(f"`window={settings.window}`: photos are scaled down to "
                           f"`max_side={settings.max_side}` first, so that none is larger than "
                           "that", f"`window={settings.window}, max_side=0`")
        kept = _narrowed(settings, kept, set(kinds.FEATURE_TENSORS) - set(_WHOLE),
                         "photos in windows have no {}, which all patches share",
                         "`keep='patches'`, the default with `window`")
    return kept


def _narrowed(settings: ExtractSettings, kept: tuple[str, ...], able: Collection[str], why: str,
              hint: str) -> tuple[str, ...]:
    """Drop unavailable tensors; an error if they were explicitly requested, or none is left."""
    missing = [name for name in kept if name not in able]
    if missing and ("keep" in settings.given or len(missing) == len(kept)):
        raise VplError(f"`keep={settings.keep!r}`: {why.format(missing[0])}", hint)
    return tuple(name for name in kept if name in able)


def _kept_of_encoder(encoder: encoders.Encoder, settings: ExtractSettings, kept: tuple[str, ...]
                     ) -> tuple[str, ...]:
    """Return the tensors to keep: of those requested, what the encoder provides."""
    if settings.patches != "block" and not settings.encoder:
        encoders.with_head(encoder, f"`patches={settings.patches!r}`")
    able, name = encoder.vision.able, encoder.identity["name"]
    if "keep" in settings.given or able.isdisjoint(kept):
        encoder.vision.check_able(kept, name)
    missing = [tensor for tensor in kept if tensor not in able]
    if missing:
        console.note(f"{name} gives no {' and no '.join(missing)}")
    return tuple(tensor for tensor in kept if tensor in able)
