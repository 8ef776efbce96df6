"""Masks of CAMs, of the CRF, and of proposals of several kinds, scored on the same photos.

    python benchmarks/proposals.py WORKSPACE --soft DIR [--splits train,val] [--alpha 1]

WORKSPACE has CAMs of the splits and true masks, as `own-photos masks=DIR` leaves them; DIR has a
soft map ID.png of each photo that is scored, as rembg writes them. Those photos are drawn by
--seed. The CRF runs once a photo, and each row's votes are those of `crf --method proposals`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from vpltool.core.crf import labels_at
from vpltool.core.metrics import Confusion, boundary_counts, boundary_f, confusion, scores
from vpltool.core.proposals import Proposal, Proposals, from_tensors, to_tensors
from vpltool.engine.scored import ReadPhoto, Scores, read_scored
from vpltool.formats import Photo, find_folder, open_workspace
from vpltool.formats.labels import read_soft
from vpltool.methods.inputs import ProposalRequest
from vpltool.methods.label_refiners import densecrf
from vpltool.methods.label_refiners import proposals as voting
from vpltool.methods.proposers import felzenszwalb, files, slic
from vpltool.stages._truth import read_truth

Field = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

DROPPED = 0.4
"""Share of objects left out: a public attempt with SAM 3 had masks on 61 % of its pixels."""

KINDS = {"Felzenszwalb": "felzenszwalb", "SLIC": "slic", "U²-Net": "soft",
         "U²-Net's objects": "objects", "U²-Net's objects, some dropped": "dropped"}

CONFIDENCE_OF_CRF = 0.95
"""Default of `crf`, CLIP-ES's."""


@dataclass(frozen=True)
class Case:
    """A photo, what is known of it, and where more is kept for the next run."""

    photo: Photo
    split: str
    work: Path
    options: argparse.Namespace

    @property
    def path(self) -> Path:
        """Where the photo lies."""
        return open_workspace(self.work).image_path(self.photo)


@dataclass(frozen=True)
class Result:
    """What a row came to on a photo.

    Args:
        counts: confusion matrix.
        edges: counts of boundary pixels.
        unsure: share of pixels that training ignores.
        sure: pixels by tenth of their largest marginal, all and right (10, 2).
        worse: whether its own mIoU is below that of a mask of background alone.
    """

    counts: Confusion
    edges: Counts
    unsure: float
    sure: Counts
    worse: bool


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a Markdown table."""
    options = _options(argv)
    for split, number in zip(options.splits, options.photos, strict=True):
        known = {photo.id: photo for photo in open_workspace(options.work).photos(split)}
        # By hash: the first ones stay the first, however many are asked for.
        chosen = sorted(known, key=lambda key: sha256(f"{options.seed} {key}".encode()).digest())
        cases = [Case(known[key], split, options.work, options) for key in chosen[:number]]
        with ProcessPoolExecutor(options.workers) as pool:
            found = list(pool.map(measure, cases))
        print(f"\n{split}, {len(found)} photos, alpha {options.alpha:g}\n")
        print("| masks of | mIoU | boundary F | ignored | worse than empty |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name in found[0]:
            print(_line(name, [results[name] for results in found]), flush=True)
        print("\nPixels that are right, by tenth of the largest marginal\n")
        for name in found[0]:
            total = np.sum([results[name].sure for results in found], axis=0)
            print(f"{name}: " + " ".join(f"{tenth / 10:.1f}: {100 * right / every:.0f} %"
                  for tenth, (every, right) in enumerate(total) if every), flush=True)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--soft", type=Path, required=True, help="folder of soft maps ID.png")
    parser.add_argument("--cams", default="seeds-refined")
    parser.add_argument("--splits", default=["train", "val"], type=lambda text: text.split(","))
    parser.add_argument("--photos", default=[300, 150], help="of each split",
                        type=lambda text: [int(number) for number in text.split(",")])
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for marginals and proposals, which the "
                                                  "next run takes from there")
    return parser.parse_args(argv)


def _line(name: str, results: list[Result]) -> str:
    miou = scores(sum((result.counts for result in results[1:]), results[0].counts)).miou
    edge = boundary_f(np.sum([result.edges for result in results], axis=0))
    unsure = np.mean([result.unsure for result in results])
    worse = sum(result.worse for result in results)
    return f"| {name} | {100 * miou:.1f} | {100 * edge:.1f} | {100 * unsure:.1f} % | {worse} |"


def measure(case: Case) -> dict[str, Result]:
    """Make and score the masks of a photo, a row each."""
    workspace = open_workspace(case.work)
    torch.set_num_threads(1)
    source = find_folder(case.work, ("cams",), case.options.cams, case.split, "`cam()`")
    read = read_scored(Scores(source, case.options.alpha, 1024, workspace.classes),
                       (case.photo.id, case.path))
    if read.failure:
        raise SystemExit(read.failure)
    truth = read_truth(workspace, case.photo, read.size)
    return {name: _scored(marginals, confidence, read, truth, 1 + len(workspace.classes))
            for name, marginals, confidence in rows(case, read)}


def rows(case: Case, read: ReadPhoto) -> Iterator[tuple[str, Field, float]]:
    """Yield each row's name, marginals (L, H, W), and the confidence below which 255 is written."""
    cams = read.scored.scores
    crf = _kept(case, f"crf-{case.options.alpha:g}", lambda: densecrf.refine_labels(
        [read.scored], densecrf.Settings(kernels="weclip"), torch.device("cpu"))[0])
    yield "CAMs", cams, 0.0
    yield "dense CRF", crf, CONFIDENCE_OF_CRF
    found = proposals_of(case, read)
    for name, kind in KINDS.items():
        for where, base in (("from CAMs", cams), ("after the CRF", crf)):
            photo = replace(read.scored, scores=base, proposals=found[kind])
            (made,) = voting.refine_labels([photo], voting.Settings(base="cams"),
                                           torch.device("cpu"))
            yield f"{name}, {where}", made, voting.CONFIDENCE


def _kept(case: Case, name: str, make: Any) -> Field:
    """A field that an earlier run has kept; else it is made, and kept."""
    if case.options.keep is None:
        return np.asarray(make(), np.float32)
    path = case.options.keep / f"{case.work.name}-{name}" / f"{case.photo.id}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(make(), np.float16))
    return np.asarray(np.load(path), np.float32)


def proposals_of(case: Case, read: ReadPhoto) -> Mapping[str, Proposals]:
    """Proposals of each kind for a photo, at the size at which it is worked on."""
    request = ProposalRequest([(case.photo.id, case.path)], torch.device("cpu"))
    size = (read.scored.photo.shape[0], read.scored.photo.shape[1])
    soft = read_soft(case.options.soft / f"{case.photo.id}.png")
    objects = list(_objects(soft > 127))
    # Each photo has a draw of its own, so that the order does not matter.
    draw = random.Random(f"{case.options.seed} {case.photo.id}")
    left = [inside for inside in objects if draw.random() >= DROPPED]
    of_soft = files.of_soft_map(soft, files.levels_of(files.Settings().levels))
    made = {"soft": Proposals.of(soft.shape, of_soft),
            "objects": Proposals.of(soft.shape, map(Proposal, objects)),
            "dropped": Proposals.of(soft.shape, map(Proposal, left))}
    for name, method in (("felzenszwalb", felzenszwalb), ("slic", slic)):
        made[name] = _kept_proposals(case, name, method, request)
    return {name: found.resized(size) for name, found in made.items()}


def _kept_proposals(case: Case, name: str, method: Any, request: ProposalRequest) -> Proposals:
    path = (case.options.keep or Path()) / name / f"{case.photo.id}.safetensors"
    if case.options.keep and path.exists():
        return from_tensors(load_file(path))
    ((_, found),) = method.propose(request, method.Settings())
    if isinstance(found, str):
        raise SystemExit(found)
    if case.options.keep:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(to_tensors(found), path)
    return found


def _objects(inside: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the connected parts of a mask, without specks."""
    from scipy import ndimage

    numbers, count = ndimage.label(inside)
    for number in range(1, count + 1):
        if (part := numbers == number).sum() >= voting.Settings().min_area:
            yield part


def _scored(marginals: Field, confidence: float, read: ReadPhoto, truth: npt.NDArray[np.uint8],
            classes: int) -> Result:
    labels = labels_at(marginals, read.classes, read.size)
    training = labels_at(marginals, read.classes, read.size, confidence)
    counts = confusion(truth, labels, classes)
    empty = confusion(truth, np.zeros_like(labels), classes)
    return Result(counts, boundary_counts(truth, labels, classes, 0.02),
                  float((training == 255).mean()), _by_confidence(marginals, labels, truth),
                  scores(counts).miou < scores(empty).miou - 1e-9)


def _by_confidence(marginals: Field, labels: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
                   ) -> Counts:
    """Count pixels by tenth of their largest marginal: all, and right ones (10, 2)."""
    best = marginals.max(axis=0)
    if best.shape != truth.shape:
        return np.zeros((10, 2), np.int64)
    known = truth != 255
    tenth = (10 * best[known]).astype(np.int64).clip(0, 9)
    return np.stack([np.bincount(tenth, minlength=10), np.bincount(
        tenth, (labels == truth)[known], minlength=10).astype(np.int64)], axis=1)


if __name__ == "__main__":
    main()
