"""`vpltool learn-prototypes`: VPL's phase 1, from text prototypes to vision prototypes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.formats import (
    Header,
    InputFolder,
    Workspace,
    find_folder,
    identity_of_file,
    open_input,
    open_workspace,
    write_tensors,
)
from vpltool.options import (
    Device,
    Limit,
    NoEffect,
    Out,
    Overwrite,
    Quiet,
    Seed,
    Split,
    warn_about_no_effect,
)
from vpltool.stage import Stage
from vpltool.stages import _artifacts

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.phase_one import Pixels

STAGE = Stage(order=45, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",))

CHOICES = {
    "solver": ("pgd", "lbfgs"), "pixels": ("all", "seeds", "regions"),
    "classes": ("present", "all"), "student": ("all", "present"),
    "targets": ("text", "seeds"), "start": ("text", "seeds"), "background": ("words", "clusters"),
}

NO_EFFECT = (
    *(NoEffect(option, {"iters": (0,)}, "the start is the result") for option in (
        "tau_t", "tau_i", "lr", "harden", "solver", "classes", "student", "targets", "rounds",
        "balance")),
    NoEffect("phi", {"pixels": ("all", "regions")}, "it is where seeds begin"),
    NoEffect("phi_background", {"pixels": ("all", "regions")}, "it is where background seeds end"),
    NoEffect("cams", {"pixels": ("all",)}, "no CAM is read"),
    NoEffect("balance", {"pixels": ("all",)}, "the pixels have no labels"),
    NoEffect("clusters", {"background": ("words",)}, "there is a row for each word"),
    NoEffect("lr", {"solver": ("lbfgs",)}, "it looks for the rate itself"),
    NoEffect("tau_t", {"targets": ("seeds",)}, "the text gives no targets"),
    NoEffect("classes", {"targets": ("seeds",)}, "a target is a seed's own class"),
    NoEffect("harden", {"targets": ("seeds",), "rounds": (1,)}, "the targets are one-hot already"),
    NoEffect("rounds", {"harden": (0.0,), "student": ("present",), "rounds": range(2, 1_000_000)},
         "P' would be P from the second on"),
)


def learn_prototypes(
    ctx: typer.Context,
    tau_t: Annotated[float, typer.Option(
        "--tau-t", min=1e-4, help="Temperature of the text distribution P'.")] = 0.01,
    tau_i: Annotated[float, typer.Option(
        "--tau-i", min=1e-4, help="Temperature of the vision distribution P.")] = 0.03,
    iters: Annotated[int, typer.Option(
        min=0, help="Iterations of the solver; 0: the start is the result.")] = 3000,
    lr: Annotated[float, typer.Option(
        min=0, help="Learning rate of pgd; halved where the gradient grows (InMaP).")] = 10.0,
    phi: Annotated[float, typer.Option(
        min=0, max=1, help="With seeds: a pixel is a class's where its CAM reaches this.")] = 0.4,
    phi_background: Annotated[float, typer.Option(
        min=0, max=1, help="With seeds: a pixel is background where all CAMs are below.")] = 0.15,
    harden: Annotated[float, typer.Option(
        min=0, max=1, help="Targets whose largest entry exceeds this become one-hot (InMaP's "
                           "alpha); 0: never.")] = 0.0,
    solver: Annotated[str, typer.Option(help="pgd (the paper's), or lbfgs.")] = "pgd",
    pixels: Annotated[str, typer.Option(
        help="all patches; seeds of the CAMs alone; or regions: a CAM-weighted mean a class.",
    )] = "all",
    classes: Annotated[str, typer.Option(
        help="Classes in P': those present in the photo and the background, or all (the paper "
             "to the letter).")] = "present",
    student: Annotated[str, typer.Option(
        help="Classes in P: all, so that classes which a photo does not show are pushed away; or "
             "present.")] = "all",
    targets: Annotated[str, typer.Option(
        help="P': text; or seeds, one-hot by the CAMs (eq. 9). Default: text for all pixels, "
             "seeds for seeds.")] = "",
    start: Annotated[str, typer.Option(
        help="W at the start: text, or seeds (means of the classes' seeds).")] = "text",
    background: Annotated[str, typer.Option(
        help="Background rows: words of the text prototypes, or clusters of background seeds.",
    )] = "words",
    clusters: Annotated[int, typer.Option(
        min=1, help="Number of background clusters.")] = 24,
    per_class: Annotated[int, typer.Option(
        min=1, metavar="K", help="Prototypes a class, by k-means in its seeds.")] = 1,
    rounds: Annotated[int, typer.Option(
        min=1, help="Rounds: from the second on, P' is that of the last round's W.")] = 1,
    balance: Annotated[bool, typer.Option(
        "--balance/--no-balance", help="With seeds: give each class the same weight.")] = False,
    max_pixels: Annotated[int, typer.Option(
        min=1, metavar="N", help="Pixels used at most, the same share of each photo: bounds "
                                 "memory and time.")] = 500_000,
    cams: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="CAMs that give seeds or regions; default: text-refined, "
                                     "else text.")] = "",
    text: Annotated[str, typer.Option(
        metavar="NAME-OR-PATH", help="Text prototypes.")] = "text",
    features: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Features of the split; default: features/SPLIT.")] = None,
    split: Split = "train",
    seed: Seed = 0,
    device: Device = "auto",
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Learn a vector per class in the vision space, guided by the text (VPL).

    The defaults are the paper's reading: all pixels, text targets, the text as start. With
    --pixels seeds the CAMs say which pixels count; the objective, its gradient and the modality
    gap are shown and stored.

    Example: vpltool learn-prototypes --tau-i 0.03 --iters 3000

    Next: vpltool cam --prototypes vision
    """
    console.set_quiet(quiet)
    chosen = {
        "tau_t": tau_t, "tau_i": tau_i, "iters": iters, "lr": lr, "phi": phi,
        "phi_background": phi_background, "harden": harden, "solver": solver, "pixels": pixels,
        "classes": classes, "student": student,
        "targets": targets or ("text" if pixels == "all" else "seeds"), "start": start,
        "background": background, "clusters": clusters, "per_class": per_class, "rounds": rounds,
        "balance": balance, "max_pixels": max_pixels, "seed": seed, "split": split,
        **({"limit": limit} if limit else {})}
    _check(chosen)
    warn_about_no_effect(ctx, NO_EFFECT, chosen)
    workspace = open_workspace(ctx.obj)
    source = open_input(features or ctx.obj / "features" / split, ("features",),
                        f"vpltool extract --split {split}")
    path, text_header, vectors = _artifacts.read_prototypes(workspace, text)
    _artifacts.check_same_model(source.header.model, text_header.model,
                                f"{source.path} and {path}")
    inputs = {"features": source.identity, "text": identity_of_file(path),
              "tags": workspace.tags_identity(split)}
    maps = None
    if pixels != "all":
        maps = find_folder(ctx.obj, ("cams",), cams, split, ("cams",),
                           "vpltool cam --prototypes text, then vpltool refine --cams text",
                           preferred=("text-refined", "text"))
        workspace.check_classes(maps.header, maps.path)
        inputs["cams"] = maps.identity
    header = Header(kind="prototypes", command="learn-prototypes", options=chosen, inputs=inputs,
                    model=source.header.model)
    target = out or ctx.obj / "prototypes/vision.safetensors"
    if not _artifacts.is_done(target, header, overwrite=overwrite):
        pool = _gather(workspace, source, maps, chosen, str(device))
        with _room_for(len(pool.embeddings)):
            rows, index, facts = _learn(pool, vectors, workspace, chosen)
        write_tensors(target, replace(header, facts=facts),
                      {"prototypes": rows, "class_index": index})
    print(target)


def _check(chosen: dict[str, Any]) -> None:
    for option, known in CHOICES.items():
        if chosen[option] not in known:
            raise VplError(f"--{option} {chosen[option]}: no such choice",
                           near_name(chosen[option], known))
    if chosen["pixels"] == "all":
        for option, value in (("targets", "seeds"), ("start", "seeds"),
                              ("background", "clusters")):
            if chosen[option] == value:
                raise VplError(f"--{option} {value} needs seeds", "add --pixels seeds")
    if (chosen["student"] == "present" and chosen["classes"] == "all"
            and chosen["targets"] == "text"):
        raise VplError("--student present cannot follow targets over all classes",
                       "add --classes present, or --student all")
    if chosen["per_class"] > 1 and chosen["start"] != "seeds":
        raise VplError(f"--per-class {chosen['per_class']} needs seeds to divide",
                       "add --pixels seeds --start seeds")
    if chosen["background"] == "clusters" and chosen["targets"] == "text":
        raise VplError("--background clusters has no text to be guided by",
                       "add --targets seeds, or --background words")


def _gather(workspace: Workspace, features: InputFolder, maps: InputFolder | None,
            chosen: dict[str, Any], device: str) -> Pixels:
    import torch

    from vpltool.core.phase_one import Pixels
    from vpltool.core.seeds import UNSURE, region_features, seed_labels
    from vpltool.parallel.device import find_device

    place = find_device(device)
    photos = {photo.id: photo for photo in workspace.photos(
        chosen["split"], chosen.get("limit", 0))}
    ids = features.available(photos)
    if maps is not None:
        ids = maps.available(ids)
    ids, share = _spread(ids, chosen["max_pixels"])
    store = torch.empty(0)
    photo_of, labels = [], []
    seen = count = 0
    with console.progress("read features", len(ids)) as advance:
        for number, key in enumerate(ids):
            patches = features.read_tensors(key, "patches")["patches"]
            seen += len(patches)
            label = torch.full((len(patches),), UNSURE)
            if maps is not None:
                cam = maps.read_tensors(key)
                if chosen["pixels"] == "regions":
                    patches, label = region_features(patches, cam["cam"], cam["classes"])
                else:
                    label = seed_labels(cam["cam"], cam["classes"], chosen["phi"],
                                        chosen["phi_background"])
                    patches, label = patches[label != UNSURE], label[label != UNSURE]
            if len(patches) > share:
                generator = torch.Generator().manual_seed(chosen["seed"] * 1_000_003 + number)
                kept = torch.randperm(len(patches), generator=generator)[:share].sort().values
                patches, label = patches[kept], label[kept]
            if not number:
                # Filled photo by photo: a list of parts would be held twice when it is joined.
                # What is not written to takes no memory. A GPU computes in float32 from features
                # in half precision; on a CPU turning them to float32 at each step takes too long.
                half = place.type == "cuda" and chosen["pixels"] != "regions"
                store = torch.empty(share * len(ids), patches.shape[1],
                                    dtype=torch.float16 if half else torch.float32)
            store[count : count + len(patches)] = patches
            count += len(patches)
            photo_of.append(torch.full((len(patches),), number))
            labels.append(label)
            advance()
    if not count:
        raise VplError(f"no pixel reaches --phi {chosen['phi']:g}", "lower --phi")
    console.note(f"{count} of {seen} patches of {len(ids)} photos are used")
    if not any(photos[key].labels for key in ids):
        raise VplError(f"no photo of `{chosen['split']}` has a tag",
                       "give tags to vpltool prepare, or choose another --split")
    with _room_for(count):
        pixels = store[:count].to(place)
        length = torch.linalg.vector_norm(pixels, dim=-1, keepdim=True, dtype=torch.float32)
        pixels /= length.clamp_min(1e-12)
        # Photos with the same tags share a tensor.
        tensor_of = cache(lambda tags: torch.tensor(tags, dtype=torch.long, device=place))
        return Pixels(pixels, torch.cat(photo_of).to(place), torch.cat(labels).to(place),
                      [tensor_of(tuple(workspace.indices_of(photos[key]))) for key in ids])


def _spread(ids: list[str], most: int) -> tuple[list[str], int]:
    """Which photos give pixels, and how many each at most, so that there are `most` at most."""
    if most < len(ids):
        console.warn(f"--max-pixels {most} is below the number of photos: {most} of {len(ids)} "
                     "photos are used, spread evenly, and one pixel of each")
        ids = [ids[place * len(ids) // most] for place in range(most)]
    return ids, most // len(ids)


def _room_for(count: int) -> AbstractContextManager[None]:
    from vpltool.parallel.memory import explain_out_of_memory

    return explain_out_of_memory(f"{count} pixels", f"--max-pixels {max(count // 2, 1)}")


def _learn(pool: Pixels, vectors: dict[str, Tensor], workspace: Workspace, chosen: dict[str, Any]
           ) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Learn with a bar and a course; give rows, their classes, and facts for the header."""
    from vpltool.core import phase_one
    from vpltool.core.prototypes import SolverRecord

    place = pool.embeddings.device
    text, text_index = vectors["prototypes"].to(place), vectors["class_index"].to(place)
    fields = phase_one.Reading.__dataclass_fields__
    reading = phase_one.Reading(**{key: chosen[key] for key in fields})
    _warn_of_missing_seeds(pool, text_index, workspace, chosen)
    course: list[list[float]] = []
    with console.progress(f"learn-prototypes ({chosen['solver']})",
                          chosen["iters"] * chosen["rounds"]) as advance:

        def watch(record: SolverRecord) -> None:
            before = course[-1][0] if course else 0
            advance(int(max(record.step - before, 0)), text=f"objective {record.objective:.4f} "
                                                            f"gradient {record.gradient:.2e}")
            course.append([record.step, round(record.objective, 7), round(record.gradient, 9),
                           record.lr])

        try:
            rows, index = phase_one.learn(pool, text, text_index, reading, watch)
        except ValueError as error:
            raise VplError(f"{error}: none is below --phi-background "
                           f"{chosen['phi_background']:g}",
                           "raise --phi-background, or --background words") from error
    if course:
        console.note(f"objective {course[0][1]:.5f} → {course[-1][1]:.5f}, "
                     f"gradient {course[0][2]:.2e} → {course[-1][2]:.2e}")
    gaps = phase_one.gaps(pool, text, text_index, rows, index)
    console.note(f"modality gap (1 - cosine to the regions): text {gaps[0].cosine:.3f}, "
                 f"vision {gaps[1].cosine:.3f}")
    return rows.cpu(), index.cpu(), {
        "space": "vision",
        "rows": [workspace.class_name(item) for item in index.tolist()],
        "gap": {name: {"cosine": round(gap.cosine, 5), "centroid": round(gap.centroid, 5)}
                for name, gap in zip(("text", "vision"), gaps, strict=True)},
        "course": course}


def _warn_of_missing_seeds(pool: Pixels, text_index: Tensor, workspace: Workspace,
                           chosen: dict[str, Any]) -> None:
    if chosen["start"] == "seeds":
        seeded = set(pool.labels.unique().tolist())
        without = [workspace.class_name(item) for item in text_index.unique().tolist()
                   if item and item not in seeded]
        if without:
            console.warn(f"no seeds for {', '.join(without)}: the text prototype stays")
