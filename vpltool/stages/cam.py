"""`vpltool cam`: from features and prototypes to class activation maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import check_choice
from vpltool.formats import (
    Header,
    identity_of_file,
    open_input,
    open_output,
    open_workspace,
    read_tensors,
)
from vpltool.options import (
    STORES,
    BatchSize,
    Device,
    Limit,
    NoEffect,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Split,
    Store,
    warn_about_no_effect,
)
from vpltool.parallel.batches import FeatureBatch, feature_batches
from vpltool.parallel.threads import write_behind
from vpltool.stage import Stage
from vpltool.stages import _artifacts
from vpltool.stages.extract import head_path

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.vit import Head

STAGE = Stage(order=40, panel="2. Maps and prototypes", reads=("features", "head", "prototypes"),
              writes=("cams",))

METHODS = {"gradcam": "tokens", "dense": "patches", "salient": "patches"}
"""Each method, and the tensor of the features that it reads."""

NO_EFFECT = tuple(NoEffect(option, {"method": ("dense", "salient")}, why) for option, why in (
    ("target", "GradCAM alone follows a score"), ("precision", "no network is run")))

TAU = {"gradcam": 0.01, "dense": 0.05, "salient": 0.05}


def cam(
    ctx: typer.Context,
    prototypes: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="text, vision, or a file of prototypes.")] = "text",
    method: Annotated[str, typer.Option(
        help="gradcam; dense: softmax of each patch; salient: border saliency, shared "
             "among the classes by the prototypes.")] = "gradcam",
    target: Annotated[str, typer.Option(
        help="Score that GradCAM follows: margin, or softmax as CLIP-ES has it.")] = "margin",
    tau: Annotated[float, typer.Option(
        min=0, help="Temperature; 0: 0.01 for gradcam, else 0.05.")] = 0,
    split: Split = "train",
    name: Annotated[str, typer.Option(
        help="Name of the result; default: that of the prototypes, and the method unless gradcam.",
    )] = "",
    features: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Features of the split; default: features/SPLIT.")] = None,
    store: Store = "fp16",
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = 8,
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a class activation map of each class that a photo is tagged with.

    Runs CLIP's last block at most; the encoder is not run again. Text and vision prototypes are
    the same to it.

    Example: vpltool cam --prototypes vision --split train

    Next: vpltool refine, or vpltool learn-prototypes, or vpltool eval
    """
    console.set_quiet(quiet)
    check_choice("method", method, tuple(METHODS))
    check_choice("target", target, ("margin", "softmax"))
    check_choice("store", store, STORES)
    warn_about_no_effect(ctx, NO_EFFECT, {"method": method})
    workspace = open_workspace(ctx.obj)
    photos = workspace.photos(split, limit)
    source = open_input(features or ctx.obj / "features" / split, ("features",),
                        f"vpltool extract --split {split}")
    path, vectors_header, vectors = _artifacts.read_prototypes(workspace, prototypes)
    _artifacts.check_same_model(source.header.model, vectors_header.model,
                                f"{source.path} and {path}")
    tau = tau or TAU[method]
    options = {"split": split, "prototypes": path.stem, "method": method, "tau": tau}
    if method == "gradcam":
        options["target"] = target
        if precision != "fp32":
            options["precision"] = precision
    if store != "fp16":
        options["store"] = store
    header = Header(kind="cams", command="cam", model=source.header.model, options=options,
                    inputs={
        "features": source.identity, "prototypes": identity_of_file(path),
        "classes": workspace.classes_identity, "tags": workspace.tags_identity(split)})
    name = name or (path.stem if method == "gradcam" else f"{path.stem}-{method}")
    ids = source.available(photo.id for photo in photos)
    output = open_output(out or ctx.obj / "cams" / name / split, header, ids, overwrite=overwrite,
                         left_out=source.left_out(photo.id for photo in photos))

    import torch

    from vpltool.core import gradcam, saliency
    from vpltool.parallel.device import PRECISIONS, find_device, find_precision
    from vpltool.parallel.memory import run_within_memory

    place = find_device(device)
    dtype = find_precision(precision, place) if method == "gradcam" else torch.float32
    rows, index = vectors["prototypes"].to(place), vectors["class_index"].to(place)
    head = (_read_head(source.path).to(place, dtype) if method == "gradcam" and output.todo
            else None)
    # On the host, where who asks for a tag does not wait.
    tags = {photo.id: torch.tensor(workspace.indices_of(photo), dtype=torch.long)
            for photo in photos}
    wanted = METHODS[method]

    def draw(batch: FeatureBatch) -> list[Tensor]:
        field = batch.tensors[wanted].to(place, non_blocking=True).to(dtype)
        present = [tags[key] for key in batch.ids]
        if head is not None:
            maps = gradcam.gradcam(head, field, batch.grid, rows, index, present, tau=tau,
                                   target=target)
        else:
            map_of = gradcam.dense_cam if method == "dense" else saliency.salient_cam
            maps = map_of(field, batch.grid, rows, index, present, tau=tau)
        return [cams.to(PRECISIONS[store]).cpu() for cams in maps]

    batches = feature_batches(source, output.todo, [wanted], batch_size, device=place)
    with (console.progress(f"cam {name} {split}", len(output.todo)) as advance,
          write_behind(output.write_tensors, batch_size if place.type == "cuda" else 0) as write):
        for batch, maps in run_within_memory(
                batches, draw, warn=console.warn,
                lower=lambda _: _artifacts.smaller_features_hint(source.header)):
            for key, cams in zip(batch.ids, maps, strict=True):
                write(key, {"cam": cams, "classes": tags[key]})
            advance(len(batch.ids))
    output.finish()


def _read_head(features: Path) -> Head:
    from vpltool.clip.weights import without_random_init
    from vpltool.core.vit import Head

    header, tensors = read_tensors(head_path(features), "head",
                                   made_by="vpltool extract writes it beside the features")
    with without_random_init():
        head = Head.from_config(header.facts["config"])
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
