"""Processor time of segmenters beside each other, from the file of a photo to its labels.

    python benchmarks/segmenters.py WORK TEACHER STUDENT STUDENT:320

A number after the colon is `predict --max-side`. Networks run in float32 on one thread. Segmenters
take turns on the same photos, five passes each; a row has the fastest pass, and how many photos a
second the segmenter sees for one of the first.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from vpltool.core.photos import read_photo
from vpltool.core.segment import labels_of
from vpltool.formats import open_workspace
from vpltool.stages._chosen_segmenter import PredictSettings, choose_segmenter

_PHOTOS = 24
_PASSES = 5


def main(work: str, *names: str) -> None:
    """Measure, and print a table of Markdown."""
    torch.set_num_threads(1)
    workspace = open_workspace(Path(work))
    listed = workspace.photos("val")
    paths = [workspace.image_path(photo) for photo in listed[::max(1, len(listed) // _PHOTOS)]]
    running = []
    for name in names:
        decoder, _, side = name.partition(":")
        chosen = choose_segmenter(Path(work), PredictSettings(
            decoder=decoder, max_side=int(side) if side else None, precision="fp32",
            device="cpu"))
        running.append((chosen.segmenter.load(chosen.named, chosen.settings), chosen.settings))
    fastest = [float("inf")] * len(names)
    for _ in range(_PASSES):
        for number, (segmenter, settings) in enumerate(running):
            start = time.process_time()
            with torch.inference_mode():
                for path in paths:
                    rgb = read_photo(path)
                    labels_of(segmenter.photo(rgb, settings), rgb.shape[:2])
            fastest[number] = min(fastest[number], (time.process_time() - start) / len(paths))
    print("| segmenter | processor seconds a photo | photos a second, relative |")
    print("| --- | ---: | ---: |")
    for name, seconds in zip(names, fastest, strict=True):
        print(f"| {name} | {seconds:.4f} | {fastest[0] / seconds:.1f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
