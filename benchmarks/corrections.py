"""mIoU after some masks were corrected, chosen by uncertainty or at random.

    python benchmarks/corrections.py WORKSPACE --masks NAME --prototypes NAME [--method linear]

A measurement, not a way to work: in place of a person, this script copies the true masks of the
photos that `export review` chooses, and hands them over as corrections. The product itself never
does. WORKSPACE holds features of train and val, masks, and true masks; decoders `corrected-*` and
the folder `corrections` are made in it.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

from vpltool import Workspace
from vpltool.engine.labelling import read_corrections, take_corrections
from vpltool.formats import open_workspace
from vpltool.stages._truth import read_truth


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a Markdown table."""
    options = _options(argv)
    train: dict[str, Any] = {"method": options.method, "masks": options.masks,
                             "prototypes": options.prototypes}
    if options.method == "linear":
        train |= {"lambda_rsc": 0, "crop": 16, "optimizer": "adamw", "lr": 5e-3,
                  "iters": options.iters, "batch_size": options.batch_size}
    counts = [int(count) for count in options.counts.split(",")]
    ways = options.by.split(",")
    print(f"| chosen by | times | seed | 0 | {' | '.join(map(str, counts))} |")
    print(f"| --- | ---: | ---: |{' ---: |' * (len(counts) + 1)}")
    for seed in range(options.first, options.first + options.seeds):
        if options.method == "linear":
            train["seed"] = seed
        base = _measure(options, train | {"name": f"corrected-0-{seed}"})
        Workspace(options.work).predict(decoder=f"corrected-0-{seed}", split="train",
                                        max_side=options.max_side, overwrite=True)
        for way in ways:
            chosen = _choose(options, f"corrected-0-{seed}", way, max(counts), seed)
            for times in map(int, options.times.split(",")):
                row = []
                for count in counts:
                    _correct(options.work, chosen[:count])
                    row.append(_measure(options, train | {
                        "name": f"corrected-{way}-{count}-{times}-{seed}",
                        "corrected_times": times}))
                print(f"| {way} | {times} | {seed} | {100 * base:.1f} | "
                      f"{' | '.join(f'{100 * value:.1f}' for value in row)} |", flush=True)
        _correct(options.work, [])


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--masks", required=True)
    parser.add_argument("--prototypes", required=True)
    parser.add_argument("--method", default="discriminant", choices=("discriminant", "linear"))
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16, help="of `linear`, as --iters")
    parser.add_argument("--max-side", type=int, default=1024)
    parser.add_argument("--limit", type=int, default=0, help="photos of val that are scored")
    parser.add_argument("--counts", default="5,10,20")
    parser.add_argument("--times", default="1", help="values of --corrected-times")
    parser.add_argument("--by", default="entropy,random")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=1)
    return parser.parse_args(argv)


def _measure(options: argparse.Namespace, train: dict[str, Any]) -> float:
    work = Workspace(options.work)
    work.train_decoder(**train, overwrite=True)
    work.predict(decoder=train["name"], split="val", max_side=options.max_side,
                 limit=options.limit, overwrite=True, probabilities=False)
    scores = work.eval(what=f"predictions/{train['name']}", split="val", limit=options.limit)
    return float(scores["miou"])


def _choose(options: argparse.Namespace, decoder: str, way: str, count: int, seed: int
            ) -> list[str]:
    out = options.work / f"exports/corrected-{way}-{seed}"
    Workspace(options.work).export("review", what=f"predictions/{decoder}", split="train",
                                   count=count, by=way, seed=seed, out=out)
    with (out / "review.csv").open(encoding="utf-8", newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


def _correct(work: Path, ids: list[str]) -> None:
    """Put the true masks of photos in the place of a person's."""
    from PIL import Image

    from vpltool.core.photos import photo_size

    shutil.rmtree(work / "corrections", ignore_errors=True)
    folder = work / "exports/corrected-by-truth"
    shutil.rmtree(folder, ignore_errors=True)
    if not ids:
        return
    workspace = open_workspace(work)
    photos = {photo.id: photo for photo in workspace.photos("train")}
    for key in ids:
        size = photo_size(workspace.image_path(photos[key]))
        path = folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(read_truth(workspace, photos[key], size)).save(path)
    take_corrections(workspace, read_corrections(workspace, list(photos.values()), folder, work))


if __name__ == "__main__":
    main()
