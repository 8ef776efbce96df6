"""`vpltool refine`: CAMs spread along the attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import check_choice
from vpltool.formats import Header, find_folder, open_input, open_output, open_workspace
from vpltool.options import (
    STORES,
    BatchSize,
    Device,
    Limit,
    NoEffect,
    Out,
    Overwrite,
    Quiet,
    Split,
    Store,
    warn_about_no_effect,
)
from vpltool.parallel.batches import feature_batches
from vpltool.parallel.threads import write_behind
from vpltool.stage import Stage
from vpltool.stages._artifacts import smaller_features_hint

if TYPE_CHECKING:
    from torch import Tensor

STAGE = Stage(order=42, panel="2. Maps and prototypes", reads=("cams", "features"),
              writes=("cams",))

MASKS = ("box", "none")

BOXES = ("inclusive", "exclusive")

AFFINITIES = {"attention": "attention", "patches": "patches"}
"""Each affinity, and the tensor of the features that it is made of."""

NO_EFFECT = (NoEffect("threshold", {"mask": ("none",)}, "it is where boxes begin"),)


def refine(
    ctx: typer.Context,
    cams: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="CAMs to refine; default: vision if there, else text.")] = "",
    affinity: Annotated[str, typer.Option(
        help="attention: CLIP's, doubly stochastic, squared (CLIP-ES); patches: a random walk "
             "between patches that look alike, one step.")] = "attention",
    mask: Annotated[str, typer.Option(
        help="box: each class stays in the boxes of its CAM; none.")] = "box",
    threshold: Annotated[float, typer.Option(
        "--lambda", min=0, max=1, help="Share of the maximum at which boxes begin; CLIP-ES: 0.4 "
                                       "for VOC, 0.7 for COCO.")] = 0.4,
    box: Annotated[str, typer.Option(
        help="inclusive: boxes reach the photo's border; exclusive: never into its last row and "
             "column of patches, as CLIP-ES's code has it.")] = "inclusive",
    min_max: Annotated[bool, typer.Option(
        "--min-max/--keep-scale",
        help="Stretch each map to [0, 1] as CLIP-ES does, or keep its scale.")] = True,
    split: Split = "train",
    features: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Features of the split; default: features/SPLIT.")] = None,
    store: Store = "fp16",
    device: Device = "auto",
    batch_size: BatchSize = 8,
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Spread CAMs along the attention: what attends to the object joins it (CLIP-ES).

    Example: vpltool refine --cams text --split train

    Next: vpltool crf, or vpltool eval
    """
    console.set_quiet(quiet)
    check_choice("mask", mask, MASKS)
    check_choice("affinity", affinity, tuple(AFFINITIES))
    check_choice("box", box, BOXES)
    check_choice("store", store, STORES)
    warn_about_no_effect(ctx, NO_EFFECT, {"mask": mask})
    workspace = open_workspace(ctx.obj)
    photos = workspace.photos(split, limit)
    start = find_folder(ctx.obj, ("cams",), cams, split, ("cams",), f"vpltool cam --split {split}",
                        preferred=("vision", "text"))
    workspace.check_classes(start.header, start.path)
    source = open_input(features or ctx.obj / "features" / split, ("features",),
                        f"vpltool extract --split {split}")
    options = {"split": split, "affinity": affinity, "mask": mask, "min_max": min_max}
    if mask == "box":
        options["lambda"] = threshold
        if box != "inclusive":
            options["box"] = box
    if store != "fp16":
        options["store"] = store
    header = Header(kind="cams", command="refine", model=source.header.model, options=options,
                    inputs={"cams": start.identity, "features": source.identity,
                            "classes": workspace.classes_identity})
    name = f"{start.name}-refined"
    wanted = [photo.id for photo in photos]
    ids = start.available(source.available(wanted))
    output = open_output(out or ctx.obj / "cams" / name / split, header, ids, overwrite=overwrite,
                         left_out=start.left_out(wanted) | source.left_out(wanted))

    from vpltool.core.affinity import refine as spread
    from vpltool.parallel.device import PRECISIONS, find_device
    from vpltool.parallel.memory import explain_out_of_memory

    place, source_tensor = find_device(device), AFFINITIES[affinity]

    def store_maps(key: str, maps: Tensor, classes: Tensor) -> None:
        # Here, so that on a GPU the writing thread waits for the maps, and no one else.
        output.write_tensors(key, {"cam": maps.to(PRECISIONS[store]).cpu(), "classes": classes})

    with (console.progress(f"refine {name} {split}", len(output.todo)) as advance,
          write_behind(store_maps, batch_size if place.type == "cuda" else 0) as write):
        for batch in feature_batches(source, output.todo, [source_tensor], batch_size,
                                     device=place):
            for key, field in zip(batch.ids, batch.tensors[source_tensor], strict=True):
                tensors = start.read_tensors(key)
                with explain_out_of_memory(f"a photo of {batch.each}", smaller_features_hint(source.header)):
                    refined = spread(
                        tensors["cam"].to(place, non_blocking=True),
                        field.to(place, non_blocking=True),
                        affinity=affinity, mask=mask, threshold=threshold,
                        exclusive=box == "exclusive", normalise=min_max)
                write(key, refined, tensors["classes"])
            advance(len(batch.ids))
    output.finish()
