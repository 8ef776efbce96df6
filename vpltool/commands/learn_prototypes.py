"""`vpltool learn-prototypes`: VPL's phase 1, from text prototypes to vision prototypes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vpltool import console
from vpltool.commands import _artifacts
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
from vpltool.options import Device, Limit, Out, Overwrite, Quiet, Seed, Split
from vpltool.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

STAGE = Stage(order=45, panel="Features and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",))

CHOICES = {
    "solver": ("pgd", "lbfgs"), "pixels": ("all", "seeds", "regions"),
    "classes": ("present", "all"), "student": ("all", "present"),
    "targets": ("text", "seeds"), "start": ("text", "seeds"), "background": ("words", "clusters"),
}


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
    """Learn one vector per class in the vision space, guided by the text (VPL, Algorithm 1).

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
        "limit": limit}
    _check(chosen)
    workspace = open_workspace(ctx.obj)
    source = open_input(features or ctx.obj / "features" / split, ("features",),
                        f"vpltool extract --split {split}")
    path, text_header, vectors = _artifacts.read_prototypes(ctx.obj, text)
    _artifacts.check_same_model(source.header.model, text_header.model,
                                f"{source.path} and {path}")
    inputs = {"features": source.identity, "text": identity_of_file(path)}
    maps = None
    if _needs_cams(chosen):
        maps = find_folder(ctx.obj, ("cams",), cams, split, ("cams",),
                           "vpltool cam --prototypes text, then vpltool refine --cams text",
                           preferred=("text-refined", "text"))
        inputs["cams"] = maps.identity
    header = Header(kind="prototypes", command="learn-prototypes", options=chosen, inputs=inputs,
                    model=source.header.model)
    target = out or ctx.obj / "prototypes/vision.safetensors"
    if not _artifacts.is_done(target, header, overwrite=overwrite):
        pool = _gather(workspace, source, maps, chosen, str(device))
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


def _needs_cams(chosen: dict[str, Any]) -> bool:
    return bool(chosen["pixels"] != "all")


@dataclass(frozen=True)
class _Pool:
    """Pixels of many photos: embeddings (N, dim), photo numbers (N,), labels (N,), tags a photo."""

    pixels: Tensor
    photo_of: Tensor
    labels: Tensor
    tags: list[Tensor]


def _gather(workspace: Workspace, features: InputFolder, maps: InputFolder | None,
            chosen: dict[str, Any], device: str) -> _Pool:
    import torch

    from vpltool.core.device import find_device
    from vpltool.core.seeds import UNSURE, region_features, seed_labels

    place = find_device(device)
    photos = {photo.id: photo for photo in workspace.photos(
        chosen["split"], chosen["limit"])}
    ids = features.available(photos)
    if maps is not None:
        ids = maps.available(ids)
    share = max(1, chosen["max_pixels"] // len(ids))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    seen = 0
    with console.progress("read features", len(ids)) as advance:
        for number, key in enumerate(ids):
            patches = features.read_tensors(key, "patches")["patches"]
            seen += len(patches)
            labels = torch.full((len(patches),), UNSURE)
            if maps is not None:
                cam = maps.read_tensors(key)
                if chosen["pixels"] == "regions":
                    patches, labels = region_features(patches, cam["cam"], cam["classes"])
                else:
                    labels = seed_labels(cam["cam"], cam["classes"], chosen["phi"],
                                         chosen["phi_background"])
                    patches, labels = patches[labels != UNSURE], labels[labels != UNSURE]
            if len(patches) > share:
                generator = torch.Generator().manual_seed(chosen["seed"] * 1_000_003 + number)
                kept = torch.randperm(len(patches), generator=generator)[:share].sort().values
                patches, labels = patches[kept], labels[kept]
            parts.append((patches.float(), torch.full((len(patches),), number), labels))
            advance()
    pixels, photo_of, labels = (torch.cat(part).to(place) for part in zip(*parts, strict=True))
    if not len(pixels):
        raise VplError(f"no pixel reaches --phi {chosen['phi']:g}", "lower --phi")
    console.note(f"{len(pixels)} of {seen} patches of {len(ids)} photos are used")
    if not any(photos[key].labels for key in ids):
        raise VplError(f"no photo of `{chosen['split']}` has a tag",
                       "give tags to vpltool prepare, or choose another --split")
    tags = [torch.tensor(workspace.indices_of(photos[key]), dtype=torch.long).to(place)
            for key in ids]
    return _Pool(torch.nn.functional.normalize(pixels, dim=-1), photo_of, labels, tags)


def _learn(pool: _Pool, vectors: dict[str, Tensor], workspace: Workspace, chosen: dict[str, Any]
           ) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Start, targets, solver, in as many rounds as asked: rows, their classes, and facts."""
    from vpltool.core import prototypes as solve
    from vpltool.core import seeds
    from vpltool.core.classes import allowed_rows

    place = pool.pixels.device
    text, text_index = vectors["prototypes"].to(place), vectors["class_index"].to(place)
    rows, index = _start(pool, text, text_index, chosen, workspace)
    in_photo = allowed_rows(index, pool.tags)[pool.photo_of]
    teacher = in_photo if chosen["classes"] == "present" else None
    learner = in_photo if chosen["student"] == "present" else None
    weights = seeds.balancing_weights(pool.labels) if chosen["balance"] else None
    watched: list[list[float]] = []
    for number in range(chosen["rounds"]):
        if number:
            # The last round's own distribution, within the photo's tags: an EM step.
            target = solve.text_targets(pool.pixels, rows, tau=chosen["tau_i"], allowed=in_photo,
                                        harden=chosen["harden"])
        elif chosen["targets"] == "seeds":
            target = seeds.seed_targets(pool.pixels, pool.labels, rows, index)
        else:
            target = solve.text_targets(pool.pixels, text, tau=chosen["tau_t"], allowed=teacher,
                                        harden=chosen["harden"])
        if chosen["iters"]:
            rows = _solve(pool, target, rows, learner, weights, chosen, watched)
    facts = _facts(pool, text, text_index, rows, index, workspace, watched)
    return rows.cpu(), index.cpu(), facts


def _start(pool: _Pool, text: Tensor, text_index: Tensor, chosen: dict[str, Any],
           workspace: Workspace) -> tuple[Tensor, Tensor]:
    import torch

    from vpltool.core import seeds
    from vpltool.core.prototypes import spherical_kmeans

    rows, index = text, text_index
    if chosen["background"] == "clusters":
        behind = pool.pixels[pool.labels == 0]
        if not len(behind):
            raise VplError(f"no pixel is below --phi-background {chosen['phi_background']:g}",
                           "raise --phi-background, or --background words")
        centres = spherical_kmeans(behind, chosen["clusters"], seed=chosen["seed"])
        rows = torch.cat([text[text_index != 0], centres])
        index = torch.cat([text_index[text_index != 0], text_index.new_zeros(len(centres))])
    if chosen["start"] == "seeds":
        seeded = set(pool.labels.unique().tolist())
        without = [workspace.class_name(item) for item in index.unique().tolist()
                   if item and item not in seeded]
        if without:
            console.warn(f"no seeds for {', '.join(without)}: the text prototype stays")
        if chosen["per_class"] > 1:
            return seeds.class_clusters(pool.pixels, pool.labels, rows, index,
                                        chosen["per_class"], seed=chosen["seed"])
        rows = seeds.class_means(pool.pixels, pool.labels, rows, index)
    return rows, index


def _solve(pool: _Pool, target: Tensor, rows: Tensor, learner: Tensor | None,
           weights: Tensor | None, chosen: dict[str, Any], watched: list[list[float]]) -> Tensor:
    from vpltool.core import prototypes as solve

    first = len(watched)
    with console.progress(f"learn-prototypes ({chosen['solver']})", chosen["iters"]) as advance:
        done = 0

        def watch(record: solve.SolverRecord) -> None:
            nonlocal done
            watched.append([record.step, round(record.objective, 7), round(record.gradient, 9),
                            record.lr])
            advance(max(record.step - done, 0), text=f"objective {record.objective:.4f} "
                                                     f"gradient {record.gradient:.2e}")
            done = max(record.step, done)

        common = {"tau": chosen["tau_i"], "iters": chosen["iters"], "allowed": learner,
                  "weights": weights, "watch": watch}
        if chosen["solver"] == "pgd":
            rows = solve.solve_pgd(pool.pixels, target, rows, lr=chosen["lr"], **common)
        else:
            rows = solve.solve_lbfgs(pool.pixels, target, rows, **common)
    console.note(f"objective {watched[first][1]:.5f} → {watched[-1][1]:.5f}, "
                 f"gradient {watched[first][2]:.2e} → {watched[-1][2]:.2e}")
    return rows


def _facts(pool: _Pool, text: Tensor, text_index: Tensor, rows: Tensor, index: Tensor,
           workspace: Workspace, watched: list[list[float]]) -> dict[str, Any]:
    """What goes into the file beside the rows: names, the solver's course, gap before and after."""
    import torch

    from vpltool.core.classes import allowed_rows
    from vpltool.core.gap import modality_gap

    labels = pool.labels
    if not bool((labels > 0).any()):
        # Without seeds, a pixel's region is the likeliest, by the text, of its photo's tags.
        allowed = allowed_rows(text_index, pool.tags)[pool.photo_of] & (text_index != 0)
        scores = (pool.pixels @ text.T).masked_fill(~allowed, float("-inf"))
        labels = torch.where(allowed.any(dim=-1), text_index[scores.argmax(dim=-1)], 0)
    shown = [item for item in labels.unique().tolist() if item > 0]
    regions = torch.stack([pool.pixels[labels == item].mean(dim=0) for item in shown])
    region_class = torch.tensor(shown)
    gaps = [modality_gap(vectors, owner, regions, region_class)
            for vectors, owner in ((text, text_index), (rows, index))]
    console.note(f"modality gap (1 - cosine to the regions): text {gaps[0].cosine:.3f}, "
                 f"vision {gaps[1].cosine:.3f}")
    return {
        "space": "vision",
        "rows": [workspace.class_name(item) for item in index.tolist()],
        "gap": {name: {"cosine": round(gap.cosine, 5), "centroid": round(gap.centroid, 5)}
                for name, gap in zip(("text", "vision"), gaps, strict=True)},
        "course": watched}
