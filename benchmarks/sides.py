"""Which side of the photos is worth its time: `own-photos`'s steps at several sides of photos.

    python benchmarks/sides.py WORK PHOTOS TAGS MASKS CLASSES ENCODER [SCALE ...]

The first 400 photos of `train`, shuffled by a seed, are 300 to learn from and 100 to score. Each
scale is a factor by which photos are enlarged or scaled down. True masks are read by `eval` only.
"""

from __future__ import annotations

import csv
import random
import sys
import time
from pathlib import Path

from vpltool import api

_TRAIN, _VAL = 300, 100


def choose(tags: Path, out: Path) -> None:
    """Write the tags of the photos that take part."""
    with tags.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("split", "train") == "train"]
    random.Random(0).shuffle(rows)
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "labels", "split"])
        for number, row in enumerate(rows[: _TRAIN + _VAL]):
            writer.writerow([row["id"], row["labels"], "train" if number < _TRAIN else "val"])


def measure(base: Path, photos: str, masks: str, classes: str, encoder: str, scale: float) -> str:
    """Return a row of the table for one scale."""
    run = api.Workspace(base / f"scale-{scale:g}")
    run.prepare("folder", images=photos, labels=base / "tags.csv", masks=masks,
                classes=classes, encoder=encoder)
    start = time.perf_counter()
    for split in ("train", "val"):
        run.extract(split=split, max_side=0, scale=scale, keep="patches,layers", layers="spread",
                    precision="bf16")
    seconds = (time.perf_counter() - start) / (_TRAIN + _VAL)
    run.tag_prototypes()
    run.cam(prototypes="tags", method="salient")
    run.seed_prototypes(cams="tags-salient", text="tags", phi=0.9, phi_background=0.5,
                        method="discriminant", instances=0.08)
    run.cam(prototypes="seeds", method="discriminant", name="seeds")
    run.refine(cams="seeds", method="patches", steps=4, mask="none", min_max=False)
    run.crf(what="seeds-refined", kernels="weclip", max_side=1024)
    run.train_decoder(masks="seeds-refined", prototypes="seeds", name="segmenter",
                      method="discriminant")
    run.predict(split="val", decoder="segmenter", scales=str(scale), max_side=0)
    scores = [run.eval(what=what, split=split)["miou"] for what, split in (
        ("cams/seeds-refined", "train"), ("masks/seeds-refined-full", "train"),
        ("predictions/segmenter", "val"))]
    return " | ".join([f"| {scale:g}", *(f"{100 * score:.1f}" for score in scores),
                       f"{seconds:.2f} |"])


def main(work: str, photos: str, tags: str, masks: str, classes: str, encoder: str,
         *scales: str) -> None:
    """Measure, and print a table of Markdown."""
    base = Path(work)
    base.mkdir(parents=True, exist_ok=True)
    choose(Path(tags), base / "tags.csv")
    print("| scale | CAMs, train | masks, train | segmenter, val | seconds a photo |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for scale in scales or ("0.91", "1", "1.295", "1.75"):
        print(measure(base, photos, masks, classes, encoder, float(scale)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
